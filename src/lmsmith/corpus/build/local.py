"""The engine of one machine: worker processes over chunk files, whatever fits the memory.

Each result is a folder below ``work/`` with a file for each task, written atomically, so that a
build that was killed goes on from the finished tasks.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.core.progress import Progress
from lmsmith.corpus.build.chunks import (
    Outcome,
    Step,
    read_documents,
    read_record,
    read_removed,
    run_steps,
    write_task,
)
from lmsmith.corpus.build.document import Document, Removed, digest, point
from lmsmith.corpus.build.engine import (
    Combiner,
    Emitter,
    Mapper,
    Pair,
    ShardWriter,
    key_of,
)
from lmsmith.corpus.build.results import (
    DONE_FILE,
    NumberedParts,
    Recorded,
    arranged,
    begin,
    discard,
    has_part,
    is_done,
    key_in,
    write_part_record,
)
from lmsmith.corpus.build.spill import (
    LocalLookup,
    arranged_by,
    combined,
    read_pairs,
    read_spill,
    spill_pairs,
    write_lookup,
    write_spill,
)
from lmsmith.corpus.build.worker import Pool

SECONDS_FILE = "seconds.json"

BYTES_OF_PARTITION = 1 << 25
"""Text whose pairs a worker sorts at a time."""

MOST_PARTITIONS = 2048

_BROADCASTS = "broadcasts-"


@dataclass(frozen=True)
class Chunk:
    """A chunk file, and the bytes of its documents' text."""

    path: Path
    documents: int
    size: int


@dataclass(frozen=True)
class LocalData:
    """Chunk files, and the steps that wait to be run over them."""

    key: str
    chunks: tuple[Chunk, ...]
    steps: tuple[Step, ...] = ()
    folder: Path = Path()


@dataclass(frozen=True)
class LocalPairs:
    """Spill files, all divided into the same partitions."""

    key: str
    files: tuple[Path, ...]


class LocalEngine(Recorded):
    """Operations of `lmsmith.corpus.build.engine.Engine` on one machine.

    Args:
        folder: of the results; nothing else is written to.
        workers: processes; 1 works in this one.
        progress: shows what is done.

    Attributes:
        partitions: of pairs, by the bytes of the text that was read; they change no result.
    """

    def __init__(self, folder: Path, workers: int, progress: Progress | None = None) -> None:
        self.folder, self.progress = folder, progress or Progress()
        self.partitions = 1
        self._pool = Pool(workers)
        self._remove_broadcasts()  # of a build that was killed
        self.seconds: dict[str, float] = _seconds_in(folder)

    def about(self) -> dict[str, Any]:
        """The number of workers, and the most memory that one of them needed."""
        peak = self._pool.peak_memory_bytes
        return {"name": "local", "workers": self._pool.workers, "peak_memory_bytes": peak}

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
        self._remove_broadcasts()

    def _remove_broadcasts(self) -> None:
        for folder in self.folder.glob(f"{_BROADCASTS}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def read(self, name: str, items: Sequence[Any], function: Mapper, key: str) -> LocalData:
        key = key_of(key, function)
        tasks = [(self.folder / name, n, item, function) for n, item in enumerate(items)]
        sizes = [getattr(item, "size", 1) for item in items]
        data = self._documents(self.folder / name, key, read_task, tasks, sizes)
        self.partitions = max(
            1, min(MOST_PARTITIONS, -(-self.bytes_of(data) // BYTES_OF_PARTITION))
        )
        return data

    def map(self, data: LocalData, name: str, function: Mapper, broadcast: Any = None) -> LocalData:
        key = key_of(data.key, name, function, broadcast)
        step = Step(name, function, self._kept(broadcast, key))
        return replace(data, key=key, steps=(*data.steps, step))

    def checkpoint(self, data: LocalData, name: str) -> LocalData:
        tasks = [
            (self.folder / name, n, chunk.path, data.steps) for n, chunk in enumerate(data.chunks)
        ]
        sizes = [chunk.size for chunk in data.chunks]
        return self._documents(self.folder / name, data.key, map_task, tasks, sizes)

    def pairs(self, data: LocalData, name: str, emit: Emitter, broadcast: Any = None) -> LocalPairs:
        key = key_of(data.key, name, emit, broadcast)
        given = self._kept(broadcast, key)
        files = [self.folder / name / f"{n:06d}.pairs" for n in range(len(data.chunks))]
        tasks = [
            (file, chunk.path, data.steps, emit, given, self.partitions)
            for file, chunk in zip(files, data.chunks, strict=True)
        ]
        self._files(
            self.folder / name, key, pairs_task, tasks, [chunk.size for chunk in data.chunks]
        )
        return LocalPairs(key, tuple(files))

    def union(self, parts: Sequence[LocalPairs]) -> LocalPairs:
        files = tuple(file for part in parts for file in part.files)
        return LocalPairs(key_of([part.key for part in parts]), files)

    def reduce(self, pairs: LocalPairs, name: str, combine: Combiner) -> LocalPairs:
        key = key_of(pairs.key, name, combine)
        files = [self.folder / name / f"{n:06d}.pairs" for n in range(self.partitions)]
        tasks = [(file, pairs.files, n, combine, self.partitions) for n, file in enumerate(files)]
        self._files(self.folder / name, key, reduce_task, tasks)
        return LocalPairs(key, tuple(files))

    def lookup(self, pairs: LocalPairs, name: str) -> LocalLookup:
        key = key_of(pairs.key, name)
        folder = self.folder / name
        tasks = [(folder / f"{n:06d}.lookup", pairs.files, n) for n in range(self.partitions)]
        self._files(folder, key, lookup_task, tasks)
        size = sum(_lookup_size(path) for path, _, _ in tasks)
        return LocalLookup(folder, self.partitions, size, key)

    def collect(self, pairs: LocalPairs) -> list[Pair]:
        found = [pair for n in range(self.partitions) for pair in read_pairs(pairs.files, n)]
        return sorted(found)

    def sample(self, data: LocalData, seed: int, step: str, share: float) -> list[Document]:
        tasks = [(chunk.path, data.steps, seed, step, share) for chunk in data.chunks]
        found: list[Document] = []
        for _, documents in self._pool.run(sample_task, tasks):
            found += documents
        return sorted(found, key=document_order)

    def arrange(
        self,
        data: LocalData,
        folder: Path,
        parts: dict[str, int],
        write: ShardWriter,
        broadcast: Any,
    ) -> list[dict[str, Any]]:
        key = key_of(data.key, parts, write, broadcast)
        given = self._kept(broadcast, key)
        order = self.folder / "order"
        files = [order / f"{n:06d}.documents" for n in range(len(data.chunks))]

        def make(numbered: NumberedParts) -> None:
            spills = [
                (file, chunk.path, data.steps, parts)
                for file, chunk in zip(files, data.chunks, strict=True)
            ]
            tasks = [
                (place, source, part, files, number, write, given)
                for number, (place, source, part) in enumerate(numbered)
            ]
            sizes = [chunk.size for chunk in data.chunks]
            self._files(order, key_of(key, "order"), order_task, spills, sizes)
            self._files(folder, key, shard_task, tasks, done=lambda task: has_part(task[0]))
            discard(order)

        return arranged(folder, key, parts, make)

    def removed(self, data: LocalData) -> Iterator[Removed]:
        for path in sorted(data.folder.glob("*.removed.parquet")):
            yield from read_removed(path)

    def _documents(
        self,
        folder: Path,
        key: str,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        sizes: Sequence[int],
    ) -> LocalData:
        """Run tasks that write chunks, and gather their records."""
        if not is_done(folder, key) or not _is_whole(folder):
            self._begin(folder, key)
            (folder / DONE_FILE).unlink(missing_ok=True)
            found = {task[1]: read_record(folder, task[1]) for task in tasks}
            todo = [task for task in tasks if found[task[1]] is None]
            before = sum(size for n, size in enumerate(sizes) if found[n] is not None)
            for number, record in self._run(
                folder.name, function, todo, [sizes[task[1]] for task in todo], before
            ):
                found[todo[number][1]] = record
            write_json(folder / DONE_FILE, gathered([each for each in found.values() if each]))
        record = msgspec.json.decode((folder / DONE_FILE).read_bytes())
        chunks = [Chunk(folder / path, count, size) for path, count, size in record["chunks"]]
        if record["unread"]:  # what comes of it is made again when these files are read
            key = key_of(key, record["unread"])
        return LocalData(key, tuple(chunks), (), folder)

    def _files(
        self,
        folder: Path,
        key: str,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        sizes: Sequence[int] = (),
        done: Callable[[tuple[Any, ...]], bool] = lambda task: task[0].exists(),
    ) -> None:
        """Run tasks each of which makes the file or folder that it names first."""
        if is_done(folder, key):
            return
        self._begin(folder, key)
        weights = sizes or [1] * len(tasks)
        todo = [n for n, task in enumerate(tasks) if not done(task)]
        before = sum(weights) - sum(weights[n] for n in todo)
        chosen, sizes = [tasks[n] for n in todo], [weights[n] for n in todo]
        self._run(folder.name, function, chosen, sizes, before)
        write_json(folder / DONE_FILE, {"files": len(tasks)})

    def _run(
        self,
        name: str,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        sizes: Sequence[int],
        before: int,
    ) -> list[tuple[int, Any]]:
        """The places and results of the tasks."""
        started = time.monotonic()
        in_bytes = sum(sizes) > len(tasks)
        scale, unit = (1 << 20, "MiB") if in_bytes else (1, "parts")
        self.progress.begin(name, -(-(before + sum(sizes)) // scale), unit, before // scale)
        results = []
        for place, result in self._pool.run(function, tasks):
            results.append((place, result))
            before += sizes[place]
            self.progress.update(-(-before // scale))
        self.progress.end()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        write_json(self.folder / SECONDS_FILE, self.seconds)
        return results

    def _begin(self, folder: Path, key: str) -> None:
        if key_in(folder) != key:
            self.seconds.pop(folder.name, None)
        begin(folder, key)

    def _kept(self, broadcast: Any, key: str) -> Any:
        """A broadcast for the workers: what is large goes by a file."""
        if broadcast is None or isinstance(broadcast, LocalLookup):
            return broadcast
        path = self._broadcasts / f"{key}.pickle"
        if not path.exists():
            path.write_bytes(pickle.dumps(broadcast, protocol=5))
        return Broadcast(path)

    @cached_property
    def _broadcasts(self) -> Path:
        """A folder of this call alone: no pickled value is read that it did not write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(mkdtemp(prefix=_BROADCASTS, dir=self.folder))


@dataclass(frozen=True)
class Broadcast:
    """A value that the workers read from a file once."""

    path: Path

    @cached_property
    def value(self) -> Any:
        return _unpickled(self.path)


@lru_cache(maxsize=16)
def _unpickled(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _given(broadcast: Any) -> Any:
    return broadcast.value if isinstance(broadcast, Broadcast) else broadcast


def _ready(steps: Iterable[Step]) -> list[Step]:
    return [replace(step, broadcast=_given(step.broadcast)) for step in steps]


def read_task(folder: Path, number: int, item: Any, function: Mapper) -> dict[str, Any]:
    """The documents of one item; returns the task's record."""
    outcome = Outcome()
    documents = run_steps([item], [Step(folder.name, function)], outcome)
    return write_task(folder, number, documents, outcome)


def map_task(folder: Path, number: int, chunk: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """One chunk through all steps that wait; returns the task's record."""
    outcome = Outcome()
    return write_task(
        folder, number, run_steps(read_documents(chunk), _ready(steps), outcome), outcome
    )


def pairs_task(
    file: Path,
    chunk: Path,
    steps: Sequence[Step],
    emit: Emitter,
    broadcast: Any,
    partitions: int,
) -> None:
    """The pairs of one chunk's documents."""
    documents = run_steps(read_documents(chunk), _ready(steps), Outcome())
    spill_pairs(file, emit(documents, _given(broadcast)), partitions)


def reduce_task(
    file: Path, inputs: Sequence[Path], number: int, combine: Combiner, partitions: int
) -> None:
    """One partition, grouped by key."""
    spill_pairs(file, combined(read_pairs(inputs, number), combine), partitions)


def lookup_task(file: Path, inputs: Sequence[Path], number: int) -> None:
    """One partition of a lookup."""
    write_lookup(file, read_pairs(inputs, number))


def sample_task(
    chunk: Path, steps: Sequence[Step], seed: int, step: str, share: float
) -> list[Document]:
    """The documents of a chunk that are drawn."""
    documents = run_steps(read_documents(chunk), _ready(steps), Outcome())
    return [each for each in documents if point(seed, step, each.id) < share]


def order_task(file: Path, chunk: Path, steps: Sequence[Step], parts: dict[str, int]) -> None:
    """A chunk's documents, divided into the parts of the shards."""
    _, number = arranged_by(parts)
    found: dict[int, list[Document]] = defaultdict(list)
    for document in run_steps(read_documents(chunk), _ready(steps), Outcome()):
        found[number(document)].append(document)
    write_spill(file, found)


def shard_task(
    place: Path,
    source: str,
    part: int,
    files: Sequence[Path],
    number: int,
    write: ShardWriter,
    broadcast: Any,
) -> None:
    """The folder of one part, and its record beside it."""
    found = [each for file in files for each in read_spill(file, number)]
    documents = sorted(msgspec.convert(found, list[Document]), key=document_order)
    with atomic_folder(place) as partial:
        record = write(documents, partial, _given(broadcast))
    write_part_record(place, source, part, record)


def document_order(document: Document) -> tuple[bytes, str, str]:
    """By a hash of the id. Documents of one id, which no reader makes, stand by their texts."""
    return digest(document.id), document.id, document.text


def _lookup_size(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def _is_whole(folder: Path) -> bool:
    """Whether a result that is done has all its chunks, and no file is to be tried again."""
    record: Any = read_json(folder / DONE_FILE)
    chunks = all((folder / name).is_file() for name, _, _ in record["chunks"])
    return chunks and not record["unread"]


def _seconds_in(folder: Path) -> dict[str, float]:
    try:
        found: Any = read_json(folder / SECONDS_FILE)
        return {str(name): float(value) for name, value in found.items()}
    except (UserError, AttributeError, TypeError, ValueError):
        return {}


def gathered(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The records of all tasks of a checkpoint as one, equal in whatever order they come."""
    outcome = Outcome()
    sizes: dict[str, list[int]] = {}
    for record in records:
        for step, sources in record["counts"].items():
            for source, counts in sources.items():
                for name, value in counts.items():
                    outcome.add(step, source, name, value)
        for source, (count, size) in record["sizes"].items():
            about = sizes.setdefault(source, [0, 0])
            about[0], about[1] = about[0] + count, about[1] + size
        for step, seconds in record["seconds"].items():
            outcome.seconds[step] += seconds
    return {
        "chunks": [chunk for record in records for chunk in record["chunks"]],
        "sizes": sizes,
        "removed": sum(record["removed"] for record in records),
        "unread": sorted(id for record in records for id in record["unread"]),
        "counts": {
            step: {source: dict(sorted(counts.items())) for source, counts in sorted(found.items())}
            for step, found in outcome.counts.items()
        },
        "seconds": outcome.seconds,
        "peak_memory_bytes": max((r["peak_memory_bytes"] for r in records), default=0),
    }
