"""A source is a string in a recipe: a file, a folder, a glob, or ``package:NAME``."""

from __future__ import annotations

import difflib
import filecmp
import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import is_hidden, missing, read_json, require_file
from lmsmith.corpus.formats import IrregularPair
from lmsmith.corpus.messages import add_message
from lmsmith.corpus.rows import (
    Conversation,
    Document,
    Ranking,
    read_conversations,
    read_documents,
    read_rankings,
)

PACKAGE_PREFIX = "package:"
DEMO_PACKAGE = "chitchat-dataset"
_INSTALL = f"pip install --no-deps {DEMO_PACKAGE}==0.9.0"

ROWS = (".jsonl", ".jsonl.gz")
TALKS = (*ROWS, ".json")
ROWS_OR_TEXT = (*ROWS, ".txt")
"""Suffixes of files of rows, conversations and documents, in capitals or not."""

_IN_FOLDERS = "conversations"
"""A .json file in a folder is read if its name begins so: others may hold anything."""


class FilesOnce:
    """The files of sources: one that comes again is read only once, an empty one not at all.

    Attributes:
        empty: the files without a byte.
        again: each copy that was not read, and the file that was.
        unread: the files in folders that have another suffix.
    """

    def __init__(self) -> None:
        self.empty: list[Path] = []
        self.again: list[tuple[Path, Path]] = []
        self.unread: list[Path] = []
        self._by_size: dict[int, list[Path]] = {}
        self._hint = ""

    def of(self, source: str, suffixes: tuple[str, ...]) -> Iterator[Path]:
        """The files of a source that were not read before."""
        for path in files_of(source, suffixes):
            if not (size := path.stat().st_size):
                self.empty.append(path)
                continue
            if (first := self._first(path, size)) is None:
                yield path
            else:
                self.again.append((path, first))
        unread = _unread(source, suffixes)
        self.unread += unread
        if any(path.name.lower().endswith(suffixes) for path in unread):
            self._hint = "; a .json file is read if it is named itself"

    def _first(self, path: Path, size: int) -> Path | None:
        """The file read before that holds the same."""
        before = self._by_size.setdefault(size, [])
        found = next((each for each in before if filecmp.cmp(each, path, shallow=False)), None)
        if found is None:
            before.append(path)
        return found

    def notes(self) -> list[str]:
        """Sentences on the files that were not read."""
        found = []
        if self.empty:
            found.append(f"{_files(len(self.empty))} empty: {_named(self.empty)}")
        if self.again:
            path, first = self.again[0]
            same = "" if path == first else f" holds the same as {first}"
            others = f", and {len(self.again) - 1:,} more" if len(self.again) > 1 else ""
            count = _files(len(self.again))
            found.append(f"{count} read once, though named twice: {path}{same}{others}")
        if self.unread:
            names = f"{_named(self.unread)}{self._hint}"
            found.append(f"{_files(len(self.unread))} not read, for the end of the name: {names}")
        return found


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + ", …" * (len(paths) > 3)


def _files(count: int) -> str:
    return "1 file was" if count == 1 else f"{count:,} files were"


def conversations_of(
    source: str, left_out: Counter[str] | None = None, files: FilesOnce | None = None
) -> Iterator[Conversation]:
    """All conversations of a source; ``left_out`` as in `read_conversations`.

    Args:
        files: those that were read before, of which a copy is left out.

    Raises:
        UserError: unknown package, nothing found, or a file cannot be read.
    """
    for path in (files or FilesOnce()).of(source, TALKS):
        if source.startswith(PACKAGE_PREFIX):
            yield from read_chitchat(path)
        else:
            yield from read_conversations(path, left_out)


def documents_of(source: str, files: FilesOnce | None = None) -> Iterator[Document]:
    """All documents of a source, which names them."""
    for path in (files or FilesOnce()).of(source, ROWS_OR_TEXT):
        yield from read_documents(path, source)


def rankings_of(
    source: str, left_out: list[IrregularPair] | None = None, files: FilesOnce | None = None
) -> Iterator[Ranking]:
    """All rankings of a source; irregular pairs as in `read_rankings`.

    A .json file, as other programs export it, is read if it is named itself.
    """
    suffixes = TALKS if source.lower().endswith(".json") else ROWS
    for path in (files or FilesOnce()).of(source, suffixes):
        yield from read_rankings(path, left_out)


def files_of(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a source, sorted: itself, all in a folder below, or a glob's matches.

    Hidden files and folders (``.name``) are not read: systems and editors leave them.

    Args:
        suffixes: at least two.

    Raises:
        UserError: there is none, one named by itself has another suffix, or one is no file.
    """
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if source.startswith(PACKAGE_PREFIX):
        return [_package_file(source)]
    path = Path(source).expanduser()
    if path.is_dir():
        found = [file for file in _visible(path, "**/*") if _read_in_folder(file, suffixes)]
        if not found:
            raise UserError(f"{source}: no {kinds} file in this folder", "Check the path.")
    elif path.exists() or path.is_symlink():
        if not path.name.lower().endswith(suffixes):
            raise UserError(f"{source}: expected a {kinds} file", f"Convert it to {suffixes[0]}.")
        found = [path]
    elif any(character in source for character in "*?["):
        found = [file for file in _matches(path) if file.name.lower().endswith(suffixes)]
        if not found:
            raise UserError(missing(source, f"no {kinds} file matches"), "Check the pattern.")
    else:
        raise UserError(missing(source, "no such file or folder"), _nearest(path))
    for file in found:
        require_file(file)
    return found


def _unread(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a source's folder that are not read."""
    path = Path(source).expanduser()
    if source.startswith(PACKAGE_PREFIX) or not path.is_dir():
        return []
    inside = _visible(path, "**/*")
    return [file for file in inside if file.is_file() and not _read_in_folder(file, suffixes)]


def _read_in_folder(file: Path, suffixes: tuple[str, ...]) -> bool:
    name = file.name.lower()
    if not name.endswith(suffixes) or file.is_dir():
        return False
    return not name.endswith(".json") or name.startswith(_IN_FOLDERS)


def _matches(pattern: Path) -> list[Path]:
    """The files and links of a glob; a folder that is there is taken by its name, [ ] or not."""
    base = Path(pattern.anchor)
    parts = list(pattern.parts[1:] if pattern.anchor else pattern.parts)
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    return [file for file in _visible(base, "/".join(parts)) if not file.is_dir()]


def _visible(folder: Path, pattern: str) -> list[Path]:
    """A glob's matches in a folder, sorted, without the hidden ones."""
    found = folder.glob(pattern)
    return sorted(file for file in found if not is_hidden(file.relative_to(folder)))


def _package_file(source: str) -> Path:
    """The data file of an installed package, found without importing it."""
    if source != PACKAGE_PREFIX + DEMO_PACKAGE:
        raise UserError(
            f"{source}: lmsmith does not know how to read this package",
            f"Known: {PACKAGE_PREFIX}{DEMO_PACKAGE}; for your own data give a path.",
        )
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{source}: not installed", _INSTALL) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "dataset.json" and path.is_file():
            return path
    raise UserError(
        f"{source}: installed without its dataset.json", _INSTALL + " --force-reinstall"
    )


def read_chitchat(path: Path) -> Iterator[Conversation]:
    """The demo's conversations of two people: whoever writes first is the user.

    Args:
        path: an object of id → ``{"messages": [[{"sender", "text", …}, …], …], …}``, a list for
            each run of one sender.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object of conversations", _INSTALL)
    for name, conversation in data.items():
        messages: list[dict[str, str]] = []
        try:
            sent = [each for run in conversation["messages"] for each in run]
            for each in sent:
                role = "user" if str(each["sender"]) == str(sent[0]["sender"]) else "assistant"
                add_message(messages, role, str(each["text"]))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, conversation {name}: not as version 0.9.0 writes it", _INSTALL
            ) from error
        if messages:
            yield Conversation(str(name), messages)


def _nearest(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else "Check the path."
