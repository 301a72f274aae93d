"""Runs a step of the corpus builder on documents in memory, through the engine of one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.corpus.build.chunks import read_removed
from lmsmith.corpus.build.document import Document, Removed
from lmsmith.corpus.build.engine import Data
from lmsmith.corpus.build.local import LocalEngine


@dataclass(frozen=True)
class Built:
    """Documents by id, what was removed, and the counts by step and source."""

    documents: dict[str, Document]
    removed: list[Removed]
    counts: dict[str, dict[str, dict[str, float]]]

    @property
    def texts(self) -> dict[str, str]:
        """The documents' texts by id, in the order of ids."""
        return {id: self.documents[id].text for id in sorted(self.documents)}


def given(items: Iterable[list[Document]], _none: None) -> Iterator[Document]:
    """The documents of a chunk."""
    for item in items:
        yield from item


def after(
    folder: Path,
    documents: Sequence[Document],
    step: Callable[[LocalEngine, Any], Data],
    chunks: int = 2,
) -> Built:
    """The documents after a step.

    Args:
        folder: of the engine.
        documents: divided among the chunks.
        step: ``step(engine, data)``.
        chunks: of the documents; also the partitions of a shuffle.
    """
    engine = LocalEngine(folder, 1)
    items = [list(documents[n::chunks]) for n in range(chunks)]
    read = engine.read("read", items, given, str(documents))
    engine.partitions = chunks
    data = step(engine, read)
    kept = engine.checkpoint(data, "kept")
    found = {each.id: each for each in engine.sample(kept, 0, "all", 1.0)}
    files = sorted((folder / "kept").glob("*.removed.parquet"))
    removed = [each for file in files for each in read_removed(file)]
    return Built(found, removed, engine.record(kept)["counts"])
