"""A source is a string in a recipe: a file, a folder, a glob, or ``package:NAME``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lmsmith.core.errors import UserError
from lmsmith.corpus.demo import PACKAGE, dataset_path, read_chitchat
from lmsmith.corpus.pairs import IrregularPair
from lmsmith.corpus.rows import (
    Conversation,
    Document,
    Ranking,
    read_conversations,
    read_documents,
    read_rankings,
)

PACKAGE_PREFIX = "package:"

ROWS = (".jsonl", ".jsonl.gz")
"""What files of rows end with."""

ROWS_OR_TEXT = (*ROWS, ".txt")


class _Package(NamedTuple):
    path: Callable[[], Path]
    read: Callable[[], Iterator[Conversation]]


_PACKAGES: dict[str, _Package] = {PACKAGE: _Package(dataset_path, read_chitchat)}


def conversations_of(source: str) -> Iterator[Conversation]:
    """All conversations of a source.

    Raises:
        UserError: unknown package, nothing found, or what `read_conversations` says.
    """
    if source.startswith(PACKAGE_PREFIX):
        yield from _package(source).read()
        return
    for path in files_of(source, ROWS):
        yield from read_conversations(path)


def documents_of(source: str) -> Iterator[Document]:
    """All documents of a source, which names them; a package's conversations are no documents."""
    for path in files_of(source, ROWS_OR_TEXT):
        yield from read_documents(path, source)


def rankings_of(source: str, left_out: list[IrregularPair] | None = None) -> Iterator[Ranking]:
    """All rankings of a source; irregular pairs as in `read_rankings`."""
    for path in files_of(source, ROWS):
        yield from read_rankings(path, left_out)


def files_of(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a source names, sorted: itself, all in a folder below, or a glob's matches.

    Args:
        suffixes: what their names may end with, at least two.

    Raises:
        UserError: there is none, or one named by itself has another suffix.
    """
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if source.startswith(PACKAGE_PREFIX):
        return [_package(source).path()]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes))
        if not found:
            raise UserError(f"{source}: no {kinds} file in this folder", "Check the path.")
        return found
    if not path.exists() and any(character in source for character in "*?["):
        matches = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
        found = sorted(file for file in matches if file.name.endswith(suffixes) and file.is_file())
        if not found:
            raise UserError(f"{source}: no {kinds} file matches", "Check the pattern.")
        return found
    if not path.exists():
        raise UserError(f"{source}: no such file or folder", _nearest(path))
    if not path.name.endswith(suffixes):
        raise UserError(f"{source}: expected a {kinds} file", f"Convert it to {suffixes[0]}.")
    return [path]


def _package(source: str) -> _Package:
    name = source.removeprefix(PACKAGE_PREFIX)
    if name not in _PACKAGES:
        raise UserError(
            f"{source}: lmsmith does not know how to read this package",
            f"Known: {', '.join(PACKAGE_PREFIX + known for known in _PACKAGES)}; "
            "for your own data give a path.",
        )
    return _PACKAGES[name]


def _nearest(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else "Check the path."
