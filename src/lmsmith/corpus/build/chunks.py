"""Chunk files of documents (Parquet), and a step's functions run over one chunk."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import atomic_file, read_json, write_json
from lmsmith.corpus.build.document import Document, Removed, Unread, Yielded
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import peak_memory_bytes

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 1 << 25
"""Text of a chunk: what a worker holds at a time."""

DOCUMENT_BYTES = 250
"""What a document takes besides its text: many short ones are divided too."""

_ROWS = 256
"""Documents that are read from a chunk file at a time."""

_FIELDS = Document.__struct_fields__
_REMOVED = Removed.__struct_fields__


@dataclass(frozen=True)
class Step:
    """A function that waits to be run: ``function(documents, broadcast)``."""

    name: str
    function: Callable[[Iterable[Any], Any], Iterator[Yielded]]
    broadcast: Any = None


class Outcome:
    """What the steps removed and counted in one task, by step and source.

    ``unread`` has the ids of files that another build tries again.
    """

    def __init__(self) -> None:
        self.removed: list[Removed] = []
        self.unread: list[str] = []
        self.counts: dict[str, dict[str, dict[str, float]]] = {}
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, step: str, source: str, name: str, value: float) -> None:
        found = self.counts.setdefault(step, {}).setdefault(source, {})
        found[name] = found.get(name, 0) + value

    def document(self, step: str, direction: str, document: Document) -> None:
        self.add(step, document.source, f"documents_{direction}", 1)
        self.add(step, document.source, f"bytes_{direction}", document.size)


def run_steps(
    documents: Iterable[Any], steps: Iterable[Step], outcome: Outcome
) -> Iterator[Document]:
    """The documents after all steps, one function reading from the other."""
    inside: list[float] = [0.0]
    stream: Iterable[Any] = _timed(documents, inside, 0)
    names: list[str] = []
    for depth, step in enumerate(steps, start=1):
        inside.append(0.0)
        names.append(step.name)
        stream = _timed(_kept(stream, step, outcome), inside, depth)
    yield from stream
    for depth, name in enumerate(names, start=1):
        outcome.seconds[name] += inside[depth] - inside[depth - 1]


def _timed(stream: Iterable[Any], inside: list[float], depth: int) -> Iterator[Any]:
    """Add the time that each item took, what it is made of included, to ``inside[depth]``."""
    iterator = iter(stream)
    while True:
        stop_if_requested()  # where one process works alone, and hears the signal itself
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            inside[depth] += time.perf_counter() - started
        yield item


def _kept(stream: Iterable[Any], step: Step, outcome: Outcome) -> Iterator[Document]:
    """What a step lets through; the rest is recorded."""

    def counted() -> Iterator[Any]:
        for each in stream:
            if isinstance(each, Document):
                outcome.document(step.name, "in", each)
            yield each

    for each in step.function(counted(), step.broadcast):
        if isinstance(each, Document):
            outcome.document(step.name, "out", each)
            yield each
        elif isinstance(each, Removed):
            outcome.removed.append(
                each if each.step else msgspec.structs.replace(each, step=step.name)
            )
            if isinstance(each, Unread):
                outcome.unread.append(each.id)
            reason = each.reason.partition(": ")[0]
            outcome.add(step.name, each.source, f"removed.{reason}", 1)
            outcome.add(step.name, each.source, f"removed_bytes.{reason}", each.size)
        else:
            outcome.add(step.name, each.source, each.name, each.value)


def write_task(
    folder: Path, number: int, documents: Iterable[Document], outcome: Outcome
) -> dict[str, Any]:
    """Write a task's chunks, then its record, which says that they are whole."""
    chunks: list[list[Any]] = []
    held: list[Document] = []
    size = 0

    def flush() -> None:
        nonlocal held, size
        name = f"{number:06d}-{len(chunks):04d}.parquet"
        write_documents(folder / name, held)
        chunks.append([name, len(held), size])
        held, size = [], 0

    sizes: dict[str, list[int]] = {}
    for document in documents:
        held.append(document)
        bytes_of = document.size
        size += bytes_of
        about = sizes.setdefault(document.source, [0, 0])
        about[0], about[1] = about[0] + 1, about[1] + bytes_of
        if size + DOCUMENT_BYTES * len(held) >= CHUNK_BYTES:
            flush()
    if held:
        flush()
    of_removed = folder / f"{number:06d}.removed.parquet"
    of_removed.unlink(missing_ok=True)  # of a task that is run again
    if outcome.removed:
        write_table(of_removed, outcome.removed, _REMOVED)
    record = {
        "chunks": chunks,
        "sizes": sizes,
        "removed": len(outcome.removed),
        "unread": outcome.unread,
        "counts": outcome.counts,
        "seconds": outcome.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder / f"{number:06d}.json", record)
    return record


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a task that is done for good, if its chunks are there."""
    place = folder / f"{number:06d}.json"
    if not place.is_file():
        return None
    try:
        record: Any = read_json(place)
        whole = all((folder / name).is_file() for name, _, _ in record["chunks"])
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return record if whole and not record["unread"] else None


def write_documents(path: Path, documents: list[Document]) -> None:
    """A chunk file; the scores are JSON."""
    write_table(path, documents, _FIELDS)


def write_table(path: Path, rows: list[Any], fields: tuple[str, ...]) -> None:
    """A Parquet file of structs."""
    with needs_extra("corpus"):
        import pyarrow.parquet as pq
    with atomic_file(path) as partial:
        table = table_of(rows, fields)
        pq.write_table(table, partial, compression="zstd", row_group_size=4096)


def table_of(rows: list[Any], fields: tuple[str, ...]) -> pa.Table:
    """A column for each field: sizes are numbers, scores JSON, all others text."""
    with needs_extra("corpus"):
        import pyarrow as pa
    columns: dict[str, Any] = {}
    for name in fields:
        values = [getattr(row, name) for row in rows]
        if name == "scores":
            values = [msgspec.json.encode(each, order="deterministic").decode() for each in values]
        columns[name] = pa.array(values, pa.int64() if name == "size" else pa.large_string())
    return pa.table(columns)


def removed_table(rows: list[Removed]) -> pa.Table:
    """What steps removed, as a table."""
    return table_of(rows, _REMOVED)


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a chunk file, some at a time.

    Raises:
        UserError: the file is damaged.
    """
    for row in read_rows(path):
        scores = row.pop("scores")
        found = msgspec.json.decode(scores, type=dict[str, float]) if scores != "{}" else {}
        yield Document(**row, scores=found)


_REMOVE = "Remove this file; the same command makes it again."


def read_removed(path: Path, fix: str = _REMOVE) -> Iterator[Removed]:
    """What the steps removed, in a task or in all.

    Args:
        fix: what to do if the file is damaged.
    """
    for row in read_rows(path, fix):
        yield Removed(**row)


def read_rows(path: Path, fix: str = _REMOVE) -> Iterator[dict[str, Any]]:
    with needs_extra("corpus"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                yield from _rows(batch)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({error})", fix) from error


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows
