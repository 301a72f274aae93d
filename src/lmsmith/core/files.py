"""Files that are either whole or absent: atomic writes, JSON, JSONL and hashes."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.json_text import KeptRows, decode_json, list_items
from lmsmith.core.text import encodable

_MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8
_ALWAYS_UNPACKED, _UNPACKED_TIMES = 1 << 26, 100
"""A packed file may give so many bytes, and so many times its size more."""

PARTIAL_SUFFIX = ".partial"
"""Suffix of an unfinished write; after a kill such files may be removed."""


def storage_error(path: Path, error: OSError) -> UserError | OSError:
    """The error to raise for an ``OSError`` at ``path``: a message where the user can fix it."""
    number = error.errno
    if number in (errno.ENOSPC, errno.EDQUOT):
        problem = "the disk is full"
        fix = f"Free space {_free_space(path)}, then run the same command again; "
        fix += "everything saved before is whole."
    elif number == errno.EFBIG:
        problem = "the file grew past the size this process may write"
        fix = "Raise the limit (`ulimit -f unlimited`), then run the same command again."
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        problem = f"writing is not allowed ({os.strerror(number)})"
        fix = "Choose another folder, or change its owner or its permissions."
    elif (link := _dangling(path)) is not None:
        problem = f"{link} is a link to {link.readlink()}, which does not exist"
        fix = "Make that folder, or choose another path."
    elif number in (errno.ENOTDIR, errno.EEXIST):
        problem, fix = "a part of this path is a file, not a folder", "Choose another path."
    elif number == errno.EISDIR:
        problem, fix = "is a folder, not a file", "Choose another path."
    elif number in (errno.ENAMETOOLONG, errno.ELOOP):
        path, fix = Path(f"{str(path)[:200]}…"), "Choose another path."
        problem = f"no such path can be ({os.strerror(number)})"
    else:
        return error
    return UserError(f"{path}: {problem}", fix)


def _dangling(path: Path) -> Path | None:
    """The part of a path that is a link to nothing."""
    with contextlib.suppress(OSError):
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                return part
    return None


def disk_full_error(error: BaseException, folder: Path) -> UserError | None:
    """The message for a write in ``folder`` that failed; None if ``error`` is another error."""
    if isinstance(error, UserError | Interrupted | KeyboardInterrupt):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        fixed = storage_error(Path(error.filename or folder), error)
        return fixed if isinstance(fixed, UserError) else None
    text = str(error)
    # A library may keep only the words of the system's error: Rust's, or the C library's.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if f"os error {number})" in text or os.strerror(number) in text:
            fixed = storage_error(folder, OSError(number, os.strerror(number)))
            return fixed if isinstance(fixed, UserError) else None
    return None


def _free_space(path: Path) -> str:
    for folder in path.absolute().parents:
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            return f"on the disk of {folder} ({free / 2**20:,.0f} MiB are left)"
    return "on its disk"


def atomic_write(path: Path, data: bytes | str, *, private: bool = False) -> None:
    """Write ``data``: ``path`` holds all of it, or, after a UserError, its earlier content.

    Args:
        private: whether its owner alone may read it, whatever the umask.
    """
    with atomic_file(path) as partial:
        if private:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        partial.write_bytes(encodable(data).encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a name for a file that is synced and renamed to ``path`` when the block ends well.

    Raises:
        UserError: the disk is full or writing is not allowed; ``path`` is as it was.
    """
    partial = _partial_name(path)
    with _removed_on_error(partial, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that is synced and renamed to ``path`` when the block ends well.

    Its files get the permissions of the umask. A folder already at ``path`` is replaced; if the
    process dies between the two renames, the next call puts the old folder back. Errors are those
    of `atomic_file`.
    """
    partial = _partial_name(path)
    replaced = path.with_name(f".{path.name}.replaced")
    with _removed_on_error(partial, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if replaced.exists():
            if path.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(path)
        partial.mkdir()
        yield partial
        allowed = partial.stat().st_mode & 0o666  # by the umask; some libraries write 0600
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                file.chmod(allowed)
            _sync(file)
        _sync(partial)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _removed_on_error(partial: Path, path: Path) -> Iterator[None]:
    """Remove ``partial`` if the block fails; say what is wrong with ``path``."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(path, error) from error
        raise


def remove_partials(folder: Path, inside: bool = True) -> None:
    """Remove what writes that were killed left behind in ``folder``, and in its folders."""
    pattern = f".*{PARTIAL_SUFFIX}"
    for left in list(folder.rglob(pattern) if inside else folder.glob(pattern)):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}{PARTIAL_SUFFIX}")


def _sync(path: Path) -> None:
    """Ask the disk to keep ``path`` (a file or a folder) as it now is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def finite(value: object) -> object:
    """``value`` with every NaN and infinity replaced by None, since JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically; NaN and infinity become null."""
    atomic_write(path, json.dumps(finite(value), ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path, most: int | None = None) -> object:
    """Read one JSON value; UserError if the file is missing, unreadable or not UTF-8 JSON.

    ``most`` is the size in bytes from which it cannot be what it should be, and is not read.
    """
    content = _read_bytes(path, most)
    try:
        return decode_json(content.removeprefix(_MARK))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})", "Fix or replace the file.") from error


def _read_bytes(path: Path, most: int | None = None) -> bytes:
    require_file(path)
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            problem = f"{path}: {size:,} bytes, and such a file has at most {most:,}"
            raise UserError(problem, "Fetch or write it again.")
        return path.read_bytes()
    except OSError as error:
        raise _reading_error(path, error) from error
    except MemoryError as error:
        raise UserError(f"{path}: {size:,} bytes, more than fit the memory", "Split it.") from error


def missing(path: Path | str, problem: str = "no such file") -> str:
    """The problem of a path that is not there: a relative one says where it was looked for."""
    if Path(path).expanduser().is_absolute():
        return f"{path}: {problem}"
    return f"{path}: {problem} (looked for {Path(path).expanduser().absolute()})"


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; no name that the system refuses has one."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def is_remote(place: str) -> bool:
    """Whether fsspec reads the place, such as ``s3://bucket/key``."""
    return "://" in place


def beside(folder: str, path: str) -> str:
    """A path that is relative to ``folder``, unless it is absolute, an address, or begins with
    ``~``."""
    return path if is_remote(path) else str(Path(folder) / Path(path).expanduser())


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path is hidden, as ``._a.jsonl`` and ``.checkpoints/a`` are."""
    return any(part.startswith(".") and part != ".." for part in path.parts)


def require_file(path: Path) -> None:
    """UserError for a broken link, and for a pipe or a device, whose reading might never end.

    A pipe that a shell opens for a command (``/dev/stdin``, ``<(…)``) is allowed.
    """
    by_the_shell = path.absolute().is_relative_to("/dev/fd") or str(path) == "/dev/stdin"
    if path.is_symlink() and not path.exists():
        problem = f"is a link to {path.readlink()}, which does not exist"
    elif path.exists() and not (path.is_file() or path.is_dir() or by_the_shell):
        problem = "is no regular file but a pipe, a socket or a device"
    else:
        return
    raise UserError(f"{path}: {problem}", "Replace it by a file, or take it away.")


def _reading_error(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(missing(path), "Check the path.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: is a folder, and a file was expected", "Name a file in it.")
    return UserError(f"{path}: cannot be read ({error.strerror})", "Check its permissions.")


def read_jsonl(path: Path, *, kept: bool = False) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number from 1, object) for every line of a JSONL file; blank lines are skipped.

    A file whose name ends with ``.gz`` is unpacked as it is read.

    Args:
        kept: whether all rows are kept at once, so that their sum is bounded by the file's size.

    Raises:
        UserError: the file is missing or cannot be read or unpacked, or a line (named) is not
            UTF-8, not JSON or not an object, or would take far more memory than it has bytes.
    """
    decoder = msgspec.json.Decoder()
    with _open_to_read(path) as file:
        rows = KeptRows(path.stat().st_size) if kept else None
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(_MARK).strip() if number == 1 else line.strip()
            if text:
                try:
                    row = _json_object(decoder, text, f"{path}, line {number}", rows)
                except UserError:
                    if path.suffix.lower() == ".gz":
                        deque(file, maxlen=0)  # the checksum at its end may tell the reason
                    raise
                yield number, row


def read_rows(path: Path, *, kept: bool = False) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (place, object) for every row of a file: JSONL, or, in a .json file, a list of objects.

    The place opens an error, such as ``"my.jsonl, line 3"``. A .json file may also hold one object
    alone, or one a line. ``kept`` is that of `read_jsonl`.

    Raises:
        UserError: as `read_jsonl`, or the .json file holds something else.
    """
    if path.suffix.lower() == ".json":
        content = _read_bytes(path).removeprefix(_MARK)
        if not content.lstrip().startswith(b"{"):
            yield from _rows_of_list(path, content, kept)
            return
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = decode_json(content)
            del content
            yield f"{path}, item 1", _object(value, str(path), "")
            return
        del content
    for line, row in read_jsonl(path, kept=kept):
        yield f"{path}, line {line}", row


def _rows_of_list(
    path: Path, content: bytes, kept: bool
) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a JSON list, one at a time."""
    decoder = msgspec.json.Decoder()
    rows, number = KeptRows(len(content)) if kept else None, 0
    try:
        for number, item in enumerate(list_items(content), start=1):
            if rows is not None:
                rows.add(item)
            value = decode_json(item, decoder)
            place = f"{path}, item {number}"
            yield place, _object(value, place, "The file must be a list of JSON objects.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = f"{path}: not valid JSON (item {number}: {error})"
        raise UserError(problem, "Fix or replace the file.") from error


@contextlib.contextmanager
def _open_to_read(path: Path) -> Iterator[io.BufferedIOBase]:
    """The file, unpacked if its name ends with ``.gz``; errors of reading become messages."""
    require_file(path)
    try:
        if path.suffix.lower() != ".gz":
            with path.open("rb") as file:
                yield file
            return
        with gzip.open(path) as packed, io.BufferedReader(_Limited(path, packed), 1 << 18) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged, or not packed by gzip ({error})",
            "Get the file again; if it is plain text, take .gz off its name.",
        ) from error
    except OSError as error:
        raise _reading_error(path, error) from error


class _Limited(io.RawIOBase):
    """A packed file as it is unpacked; a few bytes may stand for any number."""

    def __init__(self, path: Path, packed: gzip.GzipFile) -> None:
        self._path, self._packed = path, packed
        self._left = _ALWAYS_UNPACKED + _UNPACKED_TIMES * path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._packed.readinto(buffer)
        self._left -= count
        if self._left < 0:
            problem = f"{self._path}: unpacks to more than {_UNPACKED_TIMES} times its size"
            raise UserError(problem, "Unpack it yourself if it is what you want.")
        return count


def _json_object(
    decoder: msgspec.json.Decoder[object], text: bytes, where: str, rows: KeptRows | None
) -> dict[str, object]:
    try:
        if rows is not None:
            rows.add(text)
        row = decode_json(text, decoder)
    except UnicodeDecodeError as error:
        problem = f"{where}: not UTF-8 text (byte {error.start + 1})"
        raise UserError(problem, "Save the file as UTF-8.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        problem = f"{where}: not valid JSON ({error})"
        raise UserError(problem, "Every line must be one JSON object.") from error
    return _object(row, where, "Every line must be one JSON object in braces.")


def _object(value: object, where: str, fix: str) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    found = names.get(type(value), "a number")
    raise UserError(f"{where}: expected a JSON object, found {found}", fix)


def read_text(path: Path, most: int = -1) -> str:
    """A text file, unpacked if its name ends with ``.gz``, without its byte order mark.

    Raises:
        UserError: it is missing or cannot be read or unpacked, has more than ``most`` bytes (if
            that is not negative), or a line (named) is not UTF-8.
    """
    with _open_to_read(path) as file:
        content = file.read(most + 1 if most >= 0 else -1)
    if 0 <= most < len(content):
        raise UserError(f"{path}: more than {most:,} bytes", "Name another file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"{path}, line {line}: not UTF-8 text"
        raise UserError(problem, "Save the file as UTF-8.") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]], *, private: bool = False) -> None:
    """Write one JSON object a line, atomically; NaN and infinity become null.

    ``private`` is that of `atomic_write`.
    """
    atomic_write(path, "".join(_json_line(row) for row in rows), private=private)


def _json_line(row: Mapping[str, object]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:  # a NaN or an infinity
        return json.dumps(finite(row), ensure_ascii=False) + "\n"


def growing_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that is still written to; other lines are skipped.

    Raises:
        UserError: it cannot be read, or would take far more memory than it has bytes.
    """
    return [row for row in _lines_so_far(path) if row is not None]


def damaged_line(path: Path) -> int | None:
    """The first line, from 1, of a JSONL file of objects that holds none; None if all do."""
    return next((n for n, row in enumerate(_lines_so_far(path), start=1) if row is None), None)


def _lines_so_far(path: Path) -> Iterator[dict[str, Any] | None]:
    """The object of each line; None for a line that holds none."""
    require_file(path)
    if not path.is_file():
        return
    decoder = msgspec.json.Decoder()
    with _open_to_read(path) as file:
        rows = KeptRows(path.stat().st_size)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.add(line)
            except msgspec.DecodeError as error:
                raise UserError(f"{path}, line {number}: {error}", "Remove the file.") from error
            try:
                row = decode_json(line, decoder)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last line end of a file that is appended to: a kill left it."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def mend_last_line(path: Path) -> None:
    """End the last line of a JSONL file that rows are added to; remove it if a kill tore it."""
    content = path.read_bytes() if path.is_file() else b""
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        msgspec.json.decode(last)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        cut_torn_line(path)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; UserError if it cannot be read."""
    require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _reading_error(path, error) from error


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that stand for a JSON-able value; key order does not matter."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(encodable(canonical).encode("utf-8")).hexdigest()[:16]
