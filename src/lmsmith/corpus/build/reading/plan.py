"""The files of a corpus's sources, grouped into items of about equal size for the workers."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import beside, fingerprint, is_hidden, is_remote, missing, sha256_file
from lmsmith.corpus.build.document import Removed
from lmsmith.corpus.build.reading.opening import Unreadable
from lmsmith.corpus.build.reading.text import encoding_of, is_wide
from lmsmith.corpus.build.recipe import CorpusRecipe, SourceConfig

ITEM_BYTES = 1 << 25
"""Files are read in groups of about so many bytes; a larger file of lines is divided."""

PACKAGE = "package:"

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
    ".mbox": "mail",
    ".eml": "mail",
    ".pdf": "pdf",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
}
"""End of a file's name, without that of its compression → format."""

PACKED = (".gz", ".zst")

UNPACKED_TIMES = 5
"""How much larger the text of a packed file or of Parquet often is."""


@dataclass(frozen=True)
class Part:
    """A file, or some lines of it.

    Attributes:
        id: begins the ids of its documents.
        start: first byte.
        stop: the byte after the last; None for the end of the file.
        line: number of the first line.
    """

    source: str
    place: str
    id: str
    format: str
    size: int
    start: int = 0
    stop: int | None = None
    line: int = 1


@dataclass(frozen=True)
class Item:
    """What a worker reads as one task: files, and what cannot be read at all."""

    parts: tuple[Part, ...]
    problems: tuple[Removed, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(part.size for part in self.parts)

    @property
    def text_bytes(self) -> int:
        """About the bytes of their text, before it is known."""
        return sum(part.size * (UNPACKED_TIMES if _is_packed(part) else 1) for part in self.parts)


@dataclass(frozen=True)
class Found:
    """A file of a source; ``state`` tells whether it has changed."""

    source: str
    place: str
    id: str
    size: int
    state: str


def find_files(
    recipe: CorpusRecipe, known: Mapping[str, Any]
) -> tuple[list[Found], list[Removed], dict[str, Any]]:
    """All files of all sources, each once, in order; what cannot be read; and the files' hashes.

    Args:
        known: the hashes of an earlier call: a file of equal size and time is not hashed again.

    Raises:
        UserError: a path names nothing.
    """
    files: list[Found] = []
    problems: list[Removed] = []
    hashes: dict[str, Any] = {}
    seen: set[str] = set()
    built = os.path.realpath(recipe.place)  # of an earlier build, below a source's folder
    for source, config in recipe.sources.items():
        before, inside = len(files), False
        for place, id in _places(source, config, recipe.folder, problems):
            if place in seen:
                continue
            if not is_remote(place) and Path(os.path.realpath(place)).is_relative_to(built):
                inside = True
                continue
            seen.add(place)
            try:
                size, state = _state(place, known, hashes)
            except (OSError, UserError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                why = cause.strerror if isinstance(cause, OSError) else "no regular file"
                problems.append(Removed(id, source, "", f"cannot be read: {why}"))
                continue
            files.append(Found(source, place, id, size, state))
        if len(files) == before:
            named = ", ".join(config.paths)
            if inside:
                fix = "Name another folder in out: what lies in it is the result, and is not read."
                raise UserError(f"sources.{source}: {named}: lies in {recipe.place}", fix)
            why = f" ({problems[-1].reason})" if problems else ""
            fix = "Check the paths; they are relative to the recipe's folder."
            raise UserError(f"sources.{source}: {named}: no file to read{why}", fix)
    return files, problems, hashes


def _state(place: str, known: Mapping[str, Any], hashes: dict[str, Any]) -> tuple[int, str]:
    if is_remote(place):
        with needs_extra("corpus"):
            import fsspec
        system, path = fsspec.core.url_to_fs(place)
        about = system.info(path)
        mark = [str(about.get(name, "")) for name in ("size", "ETag", "mtime", "LastModified")]
        mark.append(str(system.ukey(path)))  # what this kind of storage has to tell a change by
        return int(about["size"] or 0), fingerprint(mark)
    status = Path(place).stat()
    stamp = [status.st_size, status.st_mtime_ns]
    before = known.get(place) or [None, None, None]
    content = before[2] if before[:2] == stamp else sha256_file(Path(place))
    hashes[place] = [*stamp, content]
    return status.st_size, content


def _places(
    source: str, config: SourceConfig, folder: str, problems: list[Removed]
) -> Iterator[tuple[str, str]]:
    """(place, id) of each file of a source."""

    def unreadable(path: str, why: str) -> None:
        problems.append(Removed(f"{source}/{path}", source, "", why))

    for written in config.paths:
        if written.startswith(PACKAGE):
            found: Iterable[tuple[str, str]] = _of_package(written)
        elif is_remote(written):
            found = _remote(written)
        else:
            found = _local(written, folder, unreadable)
        for place, name in found:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            yield place, f"{source}/{shown}"


def _of_package(written: str) -> Iterator[tuple[str, str]]:
    """The files of an installed package that match a pattern, found without importing it."""
    name, _, pattern = written.removeprefix(PACKAGE).partition("/")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{written}: not installed", f"pip install {name}") from error
    chosen = [file for file in files if not pattern or fnmatch(str(file), pattern)]
    if not chosen:
        raise UserError(f"{written}: no file of the package matches", "Check the pattern.")
    for file in sorted(chosen, key=str):
        yield str(file.locate()), f"{PACKAGE}{name}/{file}"


def _remote(written: str) -> Iterator[tuple[str, str]]:
    with needs_extra("corpus"):
        import fsspec
    try:
        system, path = fsspec.core.url_to_fs(written)
        if any(character in path for character in "*?["):
            found = system.glob(path)
        else:
            found = system.find(path) if system.isdir(path) else [path]
        places = sorted(system.unstrip_protocol(each) for each in found)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{written}: cannot be read ({error})", "Check the address.") from error
    if not places:
        raise UserError(f"{written}: no such file", "Check the address.")
    yield from ((place, place) for place in places)


def _local(
    written: str, folder: str, unreadable: Callable[[str, str], None]
) -> Iterator[tuple[str, str]]:
    path = Path(beside(folder, written))
    if path.is_dir():
        found = sorted(_walk(path, unreadable, []))
        if not found:
            raise UserError(f"{written}: no file in this folder", "Check the path.")
    elif path.exists() or path.is_symlink():
        found = [path]
    elif any(character in written for character in "*?["):
        found = sorted(_matching(path, unreadable))
        if not found:
            raise UserError(missing(path, "no file matches"), "Check the pattern.")
    else:
        raise UserError(missing(path, "no such file or folder"), "Check the path.")
    base = Path(folder).absolute()
    for file in found:
        absolute = file.absolute()
        inside = absolute.is_relative_to(base)
        yield str(absolute), str(absolute.relative_to(base) if inside else absolute)


def _matching(path: Path, unreadable: Callable[[str, str], None]) -> Iterator[Path]:
    """The files that a glob matches, and those in the folders that it matches."""
    base = Path(path.anchor)
    parts = list(path.parts[1:] if path.anchor else path.parts)
    while parts and not any(character in parts[0] for character in "*?["):
        base /= parts.pop(0)
    for match in base.glob("/".join(parts)):
        if is_hidden(match.relative_to(base)):
            continue
        if match.is_dir():
            if parts[-1] != "**":
                yield from _walk(match, unreadable, [])
        else:
            yield match


def _walk(folder: Path, unreadable: Callable[[str, str], None], above: list[str]) -> Iterator[Path]:
    """The files below a folder, links followed, but not round in a loop."""
    real = os.path.realpath(folder)
    if real in above:
        unreadable(str(folder), "a link to a folder above it: a loop")
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        unreadable(str(folder), f"cannot be read: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, unreadable, [*above, real])
        else:
            yield entry


def format_of(name: str, config: SourceConfig) -> str:
    """The format of a file by its name; ``auto`` if only its content can tell."""
    if config.format != "auto":
        return config.format
    path = Path(name.lower())
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return FORMATS.get(suffix, "auto")


def make_items(recipe: CorpusRecipe, files: list[Found], problems: list[Removed]) -> list[Item]:
    """Items of about `ITEM_BYTES`: small files together, a large JSONL file divided."""
    items: list[Item] = []
    held: list[Part] = []
    for file in files:
        kind = format_of(file.place, recipe.sources[file.source])
        part = Part(file.source, file.place, file.id, kind, file.size)
        if kind == "jsonl" and file.size > 2 * ITEM_BYTES and _divisible(file.place):
            items += [Item((each,)) for each in _divided(part)]
            continue
        held.append(part)
        if sum(each.size for each in held) >= ITEM_BYTES or len(held) >= 2000:
            items.append(Item(tuple(held)))
            held = []
    if held or problems:
        items.append(Item(tuple(held), tuple(problems)))
    return items


def _is_packed(part: Part) -> bool:
    return part.format == "parquet" or part.place.lower().endswith(PACKED)


def _divisible(place: str) -> bool:
    """Whether a file's lines end with a byte of their own: not if it is packed, or UTF-16."""
    if is_remote(place):
        return False
    try:
        with Path(place).open("rb") as file:
            return not is_wide(encoding_of(file.read(4096)))
    except (Unreadable, OSError):
        return False


def _divided(part: Part) -> Iterator[Part]:
    """Parts that begin with a line each."""
    start, line, count = 0, 1, 0
    with Path(part.place).open("rb") as file:
        position = 0
        while block := file.read(min(1 << 20, ITEM_BYTES)):
            count += block.count(b"\n")
            position += len(block)
            if position - start >= ITEM_BYTES and (place := block.rfind(b"\n")) >= 0:
                stop = position - len(block) + place + 1
                yield _cut_out(part, start, stop, line)
                start, line = stop, 1 + count
    if start < part.size:
        yield _cut_out(part, start, part.size, line)


def _cut_out(part: Part, start: int, stop: int, line: int) -> Part:
    return Part(part.source, part.place, part.id, part.format, stop - start, start, stop, line)
