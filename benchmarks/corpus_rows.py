"""Rows of a planted JSONL file as documents: a module of its own, which worker processes import."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.corpus.build.document import Document

PIECE = 1 << 25
"""Bytes of the file that a task reads."""


def row_parts(corpus: Path) -> list[tuple[str, int, int]]:
    """(file, first byte, byte after the last) of each task."""
    size = corpus.stat().st_size
    return [(str(corpus), start, min(size, start + PIECE)) for start in range(0, size, PIECE)]


def read_rows(items: Iterable[tuple[str, int, int]], _broadcast: Any) -> Iterator[Document]:
    """The rows whose line begins in a part of the file."""
    for path, start, end in items:
        with Path(path).open("rb") as file:
            file.seek(max(0, start - 1))
            if start:
                file.readline()
            while file.tell() < end and (line := file.readline()):
                row = msgspec.json.decode(line)
                yield Document(row["id"], "crawl", row["text"])
