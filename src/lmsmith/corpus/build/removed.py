"""What all steps removed, in one file of the finished corpus: for its report and `corpus diff`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lmsmith.core.errors import needs_extra
from lmsmith.core.files import atomic_file
from lmsmith.corpus.build.chunks import read_removed, removed_table
from lmsmith.corpus.build.document import Removed
from lmsmith.corpus.finished import BUILD_AGAIN, FinishedCorpus

DUPLICATES = ("exact", "near-duplicates")
"""Steps whose reasons name the document that stays."""

_ROWS = 4096
"""Rows in memory at a time."""


def removed_file(key: str) -> str:
    """Name of the file in a finished corpus; each result has its own until ``corpus.json`` is."""
    return f"removed-{key}.parquet"


def write_all_removed(path: Path, rows: Iterable[Removed]) -> None:
    """Write what the steps removed, some rows at a time."""
    with needs_extra("corpus"):
        import pyarrow.parquet as pq
    with atomic_file(path) as partial:
        schema = removed_table([]).schema
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in _batches(rows):
                writer.write_table(removed_table(batch))


def _batches(rows: Iterable[Removed]) -> Iterator[list[Removed]]:
    batch: list[Removed] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def all_removed(corpus: FinishedCorpus) -> Iterator[Removed]:
    """What the steps of a finished corpus removed; nothing if the file is missing.

    Raises:
        UserError: the file is damaged.
    """
    path = corpus.removed
    return read_removed(path, BUILD_AGAIN) if path.is_file() else iter(())
