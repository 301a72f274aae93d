"""What Spark's workers do with a partition: rows of Arrow in, rows of Arrow out.

Documents, what steps removed, and the record of a task are rows of one table (`DOCUMENTS`), so
that a step is written in one pass: the column ``other`` is JSON where a row is no document.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa

from lmsmith.corpus.build.chunks import Outcome, Step, run_steps
from lmsmith.corpus.build.document import Document, Removed, digest, point
from lmsmith.corpus.build.engine import Combiner, Emitter, Mapper, Pair, ShardWriter
from lmsmith.corpus.build.sorted_runs import in_order
from lmsmith.corpus.build.spill import arranged_by, partition_of, write_lookup
from lmsmith.runs.stage_folder import peak_memory_bytes

Batches: TypeAlias = Iterator[pa.RecordBatch]

BUCKETS = 4096
"""A power of two: a partition is so many neighbouring buckets of hashes."""

DOCUMENTS = "id string, source string, text string, name string, language string, scores string"
OTHER = f"{DOCUMENTS}, other string"
ORDERED = f"{DOCUMENTS}, number int, hashed binary"
PAIRS = "bucket int, hashed binary, key binary, value binary"
FILES = "folder int, name string, place long, content binary"

_ROWS, _BYTES = 256, 1 << 23
"""Rows and bytes of a batch that goes back to Spark."""

_FIELDS = Document.__struct_fields__
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_REMOVED, _RECORD = "removed", "record"


class _Table:
    """Rows that are gathered into batches of Arrow."""

    def __init__(self, **columns: pa.DataType) -> None:
        self._schema = pa.schema(list(columns.items()))

    def batches(self, rows: Iterable[tuple[Sequence[Any], int]]) -> Batches:
        """Batches of rows, each given with about its bytes."""
        held: list[Sequence[Any]] = []
        size = 0
        for row, bytes_of in rows:
            held.append(row)
            size += bytes_of
            if len(held) >= _ROWS or size >= _BYTES:
                yield self._batch(held)
                held, size = [], 0
        if held:
            yield self._batch(held)

    def _batch(self, rows: list[Sequence[Any]]) -> pa.RecordBatch:
        columns = zip(*rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


_TEXTS = {name: pa.string() for name in _FIELDS}
_OTHER = _Table(**_TEXTS, other=pa.string())
_DOCUMENTS = _Table(**_TEXTS)
_ORDERED = _Table(**_TEXTS, number=pa.int32(), hashed=pa.binary())
_PAIRS = _Table(bucket=pa.int32(), hashed=pa.binary(), key=pa.binary(), value=pa.binary())
_FILES = _Table(folder=pa.int32(), name=pa.string(), place=pa.int64(), content=pa.binary())


def documents_in(batches: Batches) -> Iterator[Document]:
    """The documents of a table's rows."""
    for batch in batches:
        for row in batch.select(_FIELDS).to_pylist():
            scores = row.pop("scores")
            found = msgspec.json.decode(scores, type=dict[str, float]) if scores != "{}" else {}
            yield Document(**row, scores=found)


def _row(document: Document) -> tuple[Any, ...]:
    scores = msgspec.json.encode(document.scores, order="deterministic").decode()
    return (
        document.id,
        document.source,
        document.text,
        document.name,
        document.language,
        scores,
    )


@dataclasses.dataclass(frozen=True)
class SentFolder:
    """A broadcast that names a folder of the driver, with the folder's files."""

    value: Any
    files: dict[str, bytes]


def given(broadcast: Any) -> Any:
    """The value of a broadcast; a folder that came with it lies on this machine's disk."""
    value = broadcast.value if broadcast is not None else None
    if isinstance(value, SentFolder):
        return dataclasses.replace(value.value, path=_unpacked(value.value.key, value))
    return value


_folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
"""What this worker has unpacked, by key; it goes when the worker ends."""


def _unpacked(key: str, sent: SentFolder) -> Path:
    if key not in _folders:
        folder = tempfile.TemporaryDirectory(prefix="lmsmith-")
        for name, content in sent.files.items():
            (Path(folder.name) / name).write_bytes(content)
        _folders[key] = folder
    return Path(_folders[key].name)


def _ready(steps: Iterable[Step]) -> list[Step]:
    return [dataclasses.replace(step, broadcast=given(step.broadcast)) for step in steps]


def read_rows(batches: Batches, items: Any, name: str, function: Mapper) -> Batches:
    """The documents of items: each row is an item's number."""
    numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
    chosen = [items.value[number] for number in numbers]
    return _outcome(chosen, [Step(name, function)])


def map_rows(batches: Batches, steps: Sequence[Step]) -> Batches:
    """A partition's documents through the steps that wait."""
    return _outcome(documents_in(batches), _ready(steps))


def _outcome(stream: Iterable[Any], steps: Sequence[Step]) -> Batches:
    """What comes out of the steps, what they removed, and the task's record."""
    outcome = Outcome()
    nothing = (None,) * len(_FIELDS)

    def rows() -> Iterator[tuple[Sequence[Any], int]]:
        sizes: dict[str, list[int]] = {}
        removed = 0
        for document in run_steps(stream, steps, outcome):
            size = document.size
            about = sizes.setdefault(document.source, [0, 0])
            about[0], about[1] = about[0] + 1, about[1] + size
            yield (*_row(document), None), size
            removed += len(outcome.removed)
            yield from taken()
        removed += len(outcome.removed)
        yield from taken()
        record = {
            "chunks": [],
            "sizes": sizes,
            "removed": removed,
            "unread": outcome.unread,
            "counts": outcome.counts,
            "seconds": outcome.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        yield (*nothing, _json(_RECORD, record)), 0

    def taken() -> Iterator[tuple[Sequence[Any], int]]:
        for each in outcome.removed:
            yield (each.id, *nothing[1:], _json(_REMOVED, each)), len(each.excerpt)
        outcome.removed.clear()

    return _OTHER.batches(rows())


def _json(kind: str, value: Any) -> str:
    return msgspec.json.encode((kind, value)).decode("utf-8", "replace")


IS_RECORD = f"""other like '["{_RECORD}"%'"""
"""The rows of a table that are records of tasks, and those that say what was removed."""

IS_REMOVED = f"""other like '["{_REMOVED}"%'"""


def record_in(other: str) -> dict[str, Any]:
    """The record of a task."""
    found: tuple[str, dict[str, Any]] = msgspec.json.decode(other, type=tuple[str, dict[str, Any]])
    return found[1]


def removed_in(other: str) -> Removed:
    """A removed document."""
    return msgspec.json.decode(other, type=tuple[str, Removed])[1]


def sample_rows(
    batches: Batches, steps: Sequence[Step], seed: int, step: str, share: float
) -> Batches:
    """The documents that are drawn."""
    documents = run_steps(documents_in(batches), _ready(steps), Outcome())
    drawn = (each for each in documents if point(seed, step, each.id) < share)
    return _DOCUMENTS.batches((_row(each), each.size) for each in drawn)


def pair_rows(batches: Batches, steps: Sequence[Step], emit: Emitter, broadcast: Any) -> Batches:
    """The pairs of a partition's documents."""
    documents = run_steps(documents_in(batches), _ready(steps), Outcome())
    return _pair_batches(emit(documents, given(broadcast)))


def _pair_batches(pairs: Iterable[Pair]) -> Batches:
    return _PAIRS.batches(map(_pair_row, pairs))


def _pair_row(pair: Pair) -> tuple[Sequence[Any], int]:
    key, value = pair
    hashed, packed = digest(key), _pack(value)
    return (partition_of(hashed, BUCKETS), hashed, _pack(key), packed), len(packed)


def pairs_in(batches: Batches) -> Iterator[Pair]:
    """The pairs of a table's rows."""
    for batch in batches:
        keys: list[Any] = batch.column("key").to_pylist()
        values: list[Any] = batch.column("value").to_pylist()
        yield from ((_unpack(key), _unpack(value)) for key, value in zip(keys, values, strict=True))


def reduce_rows(batches: Batches, combine: Combiner) -> Batches:
    """The pairs that ``combine`` makes of each key's values; equal keys stand together."""

    def grouped() -> Iterator[Pair]:
        for key, group in groupby(pairs_in(batches), key=itemgetter(0)):
            yield from combine(key, in_order(value for _, value in group))

    return _pair_batches(grouped())


def lookup_rows(batches: Batches, partitions: int) -> Batches:
    """The file of each partition of a lookup; equal partitions stand together."""

    def files() -> Iterator[tuple[Sequence[Any], int]]:
        with tempfile.TemporaryDirectory(prefix="lmsmith-") as folder:
            by_number = groupby(_numbered(batches, partitions), key=itemgetter(0))
            for number, group in by_number:
                path = Path(folder) / f"{number:06d}.lookup"
                size = write_lookup(path, _smallest(pair for _, pair in group))
                yield from _file_rows(number, path)
                yield (number, "", 0, msgspec.json.encode(size)), 0
                path.unlink()

    return _FILES.batches(files())


def _smallest(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Each key with its smallest value; equal keys stand together."""
    for key, group in groupby(pairs, key=itemgetter(0)):
        yield key, min(value for _, value in group)


def _numbered(batches: Batches, partitions: int) -> Iterator[tuple[int, Pair]]:
    for batch in batches:
        buckets: list[Any] = batch.column("bucket").to_pylist()
        for bucket, pair in zip(buckets, pairs_in(iter([batch])), strict=True):
            yield bucket * partitions // BUCKETS, pair


def order_rows(batches: Batches, steps: Sequence[Step], parts: dict[str, int]) -> Batches:
    """Documents with the number of their part of the shards and their place in it."""
    _, number = arranged_by(parts)
    documents = run_steps(documents_in(batches), _ready(steps), Outcome())
    rows = (((*_row(each), number(each), digest(each.id)), each.size) for each in documents)
    return _ORDERED.batches(rows)


def shard_rows(batches: Batches, write: ShardWriter, broadcast: Any) -> Batches:
    """The files of each part and the record of it; documents come in order, part after part."""

    def files() -> Iterator[tuple[Sequence[Any], int]]:
        numbered = (
            (number, document)
            for batch in batches
            for number, document in zip(
                batch.column("number").to_pylist(), documents_in(iter([batch])), strict=True
            )
        )
        for number, group in groupby(numbered, key=itemgetter(0)):
            with tempfile.TemporaryDirectory(prefix="lmsmith-") as folder:
                record = write([each for _, each in group], Path(folder), given(broadcast))
                for path in sorted(Path(folder).iterdir()):
                    yield from _file_rows(number, path)
            yield (number, "", 0, msgspec.json.encode(record)), 0

    return _FILES.batches(files())


def _file_rows(number: int, path: Path) -> Iterator[tuple[Sequence[Any], int]]:
    """A file in blocks, each with its place."""
    with path.open("rb") as file:
        place = 0
        while (block := file.read(_BYTES)) or not place:
            yield (number, path.name, place, block), len(block)
            place += len(block)
            if not block:
                return


class ShippedLookup:
    """A lookup as the workers see it: an archive that Spark brings to each machine."""

    def __init__(self, archive: str, partitions: int, size: int, key: str) -> None:
        self._archive, self._partitions, self._size, self.key = archive, partitions, size, key

    def __len__(self) -> int:
        return self._size

    def get(self, key: bytes | str) -> Any:
        """The value of a key, or None."""
        return _found(self._archive, self._partitions, self._size, self.key).get(key)


@lru_cache(maxsize=64)
def _found(archive: str, partitions: int, size: int, key: str) -> Any:
    from pyspark import SparkFiles

    from lmsmith.corpus.build.spill import LocalLookup

    return LocalLookup(Path(SparkFiles.get(archive)), partitions, size, key)
