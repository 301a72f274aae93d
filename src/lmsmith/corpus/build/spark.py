"""The engine of a cluster: the same operations on Apache Spark.

Every step is a DataFrame that is written as Parquet where all machines reach it; a step that is
there is not computed again. Pairs are shuffled by ranges of their keys' hashes. Files that a step
makes (lookups, shards) come to this machine as rows, so that the machines share no disk.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import atomic_file, atomic_folder, read_json, write_json
from lmsmith.core.progress import Progress
from lmsmith.corpus.build.chunks import Step
from lmsmith.corpus.build.document import Document, Removed
from lmsmith.corpus.build.engine import Combiner, Emitter, Mapper, Pair, ShardWriter, key_of
from lmsmith.corpus.build.local import BYTES_OF_PARTITION, document_order, gathered
from lmsmith.corpus.build.results import (
    DONE_FILE,
    NumberedParts,
    Recorded,
    arranged,
    begin,
    discard,
    is_done,
    key_in,
    write_part_record,
)
from lmsmith.corpus.build.spark_session import Actions, SparkConfig, is_alone, start
from lmsmith.corpus.build.spill import LocalLookup, write_lookup

FOLDER = "spark"
"""Beside the results of the local engine, whose files are others."""


@dataclass(frozen=True)
class SparkData:
    """Documents in a table, and the steps that wait to be run over them."""

    key: str
    table: str
    steps: tuple[Step, ...] = ()
    folder: Path = Path()


@dataclass(frozen=True)
class SparkPairs:
    """Tables of pairs."""

    key: str
    tables: tuple[str, ...]


class SparkLookup(LocalLookup):
    """A lookup on this machine's disk; what the workers get of it is an archive."""

    def __init__(
        self, folder: Path, partitions: int, size: int, key: str, ship: Callable[[Path, str], str]
    ) -> None:
        super().__init__(folder, partitions, size, key)
        self._ship = ship

    def __reduce__(self) -> tuple[Any, ...]:
        from lmsmith.corpus.build.spark_tasks import ShippedLookup

        archive = self._ship(self._folder, self.key)
        return ShippedLookup, (archive, self._partitions, self._size, self.key)


class SparkEngine(Recorded):
    """Operations of `lmsmith.corpus.build.engine.Engine` on Spark.

    Args:
        folder: of the results on this machine.
        config: which cluster, and its settings.
        workers: processes, where this machine is the cluster.
        input_bytes: about those of the text of all files: decides how what is read is divided.
        progress: shows what is done.

    Attributes:
        partitions: of pairs, by the bytes of the text that was read; they change no result.

    Raises:
        UserError: PySpark or Java is missing, the cluster does not answer, or its machines do not
            reach the folder of the documents.
    """

    def __init__(
        self,
        folder: Path,
        config: SparkConfig,
        workers: int,
        input_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        with needs_extra("corpus"):
            from lmsmith.corpus.build import spark_tasks
        self.folder = folder / FOLDER
        self._tasks = spark_tasks
        self._session, self._started = start(config, workers, self.folder / "spill")
        self._context = self._session.sparkContext
        self._actions = Actions(self._session, progress or Progress())
        self._work = config.work.rstrip("/")
        self.partitions = self._partitions_for(input_bytes)
        self._shipped: set[str] = set()
        self._written: set[str] = set()
        if not is_alone(self._context.master):
            self._check_shared()

    def close(self) -> None:
        """End the session, unless it was there before."""
        if self._started:
            with contextlib.suppress(Exception):  # a signal may have ended Java already
                self._session.stop()

    def _partitions_for(self, size: int) -> int:
        """A power of two: at least one a core."""
        least = max(size // BYTES_OF_PARTITION, self._context.defaultParallelism)
        return min(int(self._tasks.BUCKETS), 1 << int(least - 1).bit_length())

    def about(self) -> dict[str, Any]:
        """The cluster, and the tasks of each stage of what was run."""
        return {
            "name": "spark",
            "spark": self._context.version,
            "master": self._context.master,
            "tasks_of_stages": self._actions.tasks,
        }

    def read(self, name: str, items: Sequence[Any], function: Mapper, key: str) -> SparkData:
        key = key_of(key, function)

        def rows() -> Any:
            given = self._context.broadcast(list(items))
            read = partial(self._tasks.read_rows, items=given, name=name, function=function)
            numbers = self._session.range(0, len(items), 1, max(1, len(items)))
            # A large packed file is one task: what it holds is divided again.
            found = numbers.mapInArrow(read, self._tasks.OTHER)
            return found.repartition(self.partitions, "id")

        data = self._documents(name, key, rows)
        self.partitions = self._partitions_for(self.bytes_of(data))
        return data

    def map(self, data: SparkData, name: str, function: Mapper, broadcast: Any = None) -> SparkData:
        key = key_of(data.key, name, function, broadcast)
        return replace(data, key=key, steps=(*data.steps, Step(name, function, broadcast)))

    def checkpoint(self, data: SparkData, name: str) -> SparkData:
        def rows() -> Any:
            function = partial(self._tasks.map_rows, steps=self._sent_steps(data))
            return self._rows(data).mapInArrow(function, self._tasks.OTHER)

        return self._documents(name, data.key, rows)

    def pairs(self, data: SparkData, name: str, emit: Emitter, broadcast: Any = None) -> SparkPairs:
        key = key_of(data.key, name, emit, broadcast)

        def rows() -> Any:
            steps, given = self._sent_steps(data), self._sent(broadcast)
            function = partial(self._tasks.pair_rows, steps=steps, emit=emit, broadcast=given)
            return self._rows(data).mapInArrow(function, self._tasks.PAIRS)

        return SparkPairs(key, (self._table(name, key, rows),))

    def union(self, parts: Sequence[SparkPairs]) -> SparkPairs:
        tables = tuple(table for part in parts for table in part.tables)
        return SparkPairs(key_of([part.key for part in parts]), tables)

    def reduce(self, pairs: SparkPairs, name: str, combine: Combiner) -> SparkPairs:
        key = key_of(pairs.key, name, combine)

        def rows() -> Any:
            function = partial(self._tasks.reduce_rows, combine=combine)
            return self._shuffled(pairs).mapInArrow(function, self._tasks.PAIRS)

        return SparkPairs(key, (self._table(name, key, rows),))

    def lookup(self, pairs: SparkPairs, name: str) -> SparkLookup:
        key = key_of(pairs.key, name)
        folder = self.folder / name

        def rows() -> Any:
            function = partial(self._tasks.lookup_rows, partitions=self.partitions)
            return self._shuffled(pairs).mapInArrow(function, self._tasks.FILES)

        if not is_done(folder, key):
            table = self._table(name, key, rows)
            sizes = self._fetch(name, table, lambda _: folder)
            for number in range(self.partitions):
                if number not in sizes:
                    write_lookup(folder / f"{number:06d}.lookup", [])
            about = {"size": sum(sizes.values()), "partitions": self.partitions}
            write_json(folder / DONE_FILE, about)
            self._remove(table)
        found: Any = read_json(folder / DONE_FILE)
        return SparkLookup(folder, found["partitions"], found["size"], key, self._ship)

    def collect(self, pairs: SparkPairs) -> list[Pair]:
        def found() -> Any:
            return self._pairs(pairs).select("key", "value").toArrow()

        table = self._actions.run("collect", found)
        return sorted(self._tasks.pairs_in(iter(table.to_batches())))

    def sample(self, data: SparkData, seed: int, step: str, share: float) -> list[Document]:
        def found() -> Any:
            draw = partial(
                self._tasks.sample_rows,
                steps=self._sent_steps(data),
                seed=seed,
                step=step,
                share=share,
            )
            return self._rows(data).mapInArrow(draw, self._tasks.DOCUMENTS).toArrow()

        table = self._actions.run(f"sample-{step}", found)
        documents = self._tasks.documents_in(iter(table.to_batches()))
        return sorted(documents, key=document_order)

    def arrange(
        self,
        data: SparkData,
        folder: Path,
        parts: dict[str, int],
        write: ShardWriter,
        broadcast: Any,
    ) -> list[dict[str, Any]]:
        key = key_of(data.key, parts, write, broadcast)

        def rows() -> Any:
            order = partial(self._tasks.order_rows, steps=self._sent_steps(data), parts=parts)
            files = partial(self._tasks.shard_rows, write=write, broadcast=self._sent(broadcast))
            ordered = (
                self._rows(data)
                .mapInArrow(order, self._tasks.ORDERED)
                .repartitionById(sum(parts.values()), "number")
                .sortWithinPartitions("number", "hashed", "id", "text")
            )
            return ordered.mapInArrow(files, self._tasks.FILES)

        def make(numbered: NumberedParts) -> None:
            table = self._table("shards", key, rows)
            staging = self.folder / "shards/files"
            records = self._fetch("shards", table, lambda number: staging / str(number))
            begin(folder, key)
            for number, (place, source, part) in enumerate(numbered):
                with atomic_folder(place) as partial_folder:
                    if number in records:
                        for path in (staging / str(number)).iterdir():
                            path.rename(partial_folder / path.name)
                    else:
                        records[number] = write([], partial_folder, broadcast)
                write_part_record(place, source, part, records[number])
            self._remove(table)
            discard(self.folder / "shards")

        return arranged(folder, key, parts, make)

    def removed(self, data: SparkData) -> Iterator[Removed]:
        others = self._read(data.table, self._tasks.OTHER).filter(self._tasks.IS_REMOVED)
        for row in others.select("other").toLocalIterator(prefetchPartitions=True):
            yield self._tasks.removed_in(row.other)

    @property
    def seconds(self) -> dict[str, float]:
        """Those of this call: a step that was there took none."""
        return self._actions.seconds

    def _documents(self, name: str, key: str, rows: Callable[[], Any]) -> SparkData:
        """A table of documents, and the records of its tasks as one."""
        table, folder = self._table(name, key, rows), self.folder / name
        if not is_done(folder, key):

            def found() -> list[Any]:
                table_rows = self._read(table, self._tasks.OTHER)
                return list(table_rows.filter(self._tasks.IS_RECORD).select("other").collect())

            records = self._actions.run(f"{name}-records", found, counted=False)
            record = gathered([self._tasks.record_in(each.other) for each in records])
            write_json(folder / DONE_FILE, record)
        if unread := self.record(SparkData(key, table, (), folder))["unread"]:
            if table not in self._written:  # of an earlier build: these files are tried again
                (folder / DONE_FILE).unlink()
                self._remove(table)
                return self._documents(name, key, rows)
            key = key_of(key, unread)
        return SparkData(key, table, (), folder)

    def _table(self, name: str, key: str, rows: Callable[[], Any]) -> str:
        """The address of a table, written if it is not there already."""
        folder = self.folder / name
        if (before := key_in(folder)) not in (None, key):
            self._remove(self._address(name, str(before)))
        begin(folder, key)
        table = self._address(name, key)
        system, whole = self._path(f"{table}/_SUCCESS")
        if not system.exists(whole):
            self._actions.run(name, lambda: rows().write.mode("overwrite").parquet(table))
            self._written.add(table)
        return table

    def _address(self, name: str, key: str) -> str:
        if self._work:
            return f"{self._work}/{name}-{key}"
        return (self.folder / name / "rows").absolute().as_uri()

    def _path(self, address: str) -> tuple[Any, Any]:
        """The file system of an address, and the address as its path."""
        path = self._session._jvm.org.apache.hadoop.fs.Path(address)
        return path.getFileSystem(self._context._jsc.hadoopConfiguration()), path

    def _remove(self, address: str) -> None:
        system, path = self._path(address)
        system.delete(path, True)

    def _read(self, address: str, schema: str) -> Any:
        return self._session.read.schema(schema).parquet(address)

    def _rows(self, data: SparkData) -> Any:
        return self._read(data.table, self._tasks.OTHER).filter("other is null").drop("other")

    def _pairs(self, pairs: SparkPairs) -> Any:
        return self._session.read.schema(self._tasks.PAIRS).parquet(*pairs.tables)

    def _shuffled(self, pairs: SparkPairs) -> Any:
        """Pairs in `partitions` ranges of hashes, those of a key beside each other."""
        width = self._tasks.BUCKETS // self.partitions
        number = _expression(f"cast(bucket div {width} as int)")
        shuffled = self._pairs(pairs).repartitionById(self.partitions, number)
        return shuffled.sortWithinPartitions("hashed", "key")

    def _sent(self, broadcast: Any) -> Any:
        """A broadcast for the workers; the files of a folder go with it."""
        if broadcast is None:
            return None
        folder = getattr(broadcast, "path", None)
        if isinstance(folder, Path) and folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.is_file())
            files = {path.name: path.read_bytes() for path in found}
            broadcast = self._tasks.SentFolder(broadcast, files)
        return self._context.broadcast(broadcast)

    def _sent_steps(self, data: SparkData) -> list[Step]:
        return [replace(step, broadcast=self._sent(step.broadcast)) for step in data.steps]

    def _ship(self, folder: Path, key: str) -> str:
        """Bring the files of a lookup to all machines; the name of the archive."""
        archive = folder / f"{key}.zip"
        if key not in self._shipped:
            if not archive.exists():
                with atomic_file(archive) as path, zipfile.ZipFile(path, "w") as packed:
                    for each in sorted(folder.glob("*.lookup")):
                        packed.write(each, each.name)
            self._context.addArchive(str(archive.absolute()))
            self._shipped.add(key)
        return archive.name

    def _fetch(self, name: str, table: str, target: Callable[[int], Path]) -> dict[int, Any]:
        """Write the files in a table below ``target(folder)``; folder → its record."""

        def fetch() -> dict[int, Any]:
            records: dict[int, Any] = {}
            for row in self._read(table, self._tasks.FILES).toLocalIterator(
                prefetchPartitions=True
            ):
                if not row.name:
                    records[row.folder] = msgspec.json.decode(bytes(row.content))
                    continue
                path = target(row.folder) / row.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.seek(row.place)
                    file.write(row.content)
            return records

        return self._actions.run(f"{name}-files", fetch, counted=False)

    def _check_shared(self) -> None:
        """Refuse machines that do not reach the folder of the documents."""
        address = self._address("probe", "probe")
        count = 2 * self._context.defaultParallelism

        def write() -> None:
            self._session.range(0, count, 1, count).write.mode("overwrite").parquet(address)

        self._actions.run("probe", write, counted=False)
        system, path = self._path(address)
        files = [each.getPath().getName() for each in system.listStatus(path)]
        self._remove(address)
        if sum(each.startswith("part-") for each in files) < count:
            raise UserError(
                f"the machines of {self._context.master} do not all write to {address}",
                "Set spark.work to a folder that all of them reach, such as hdfs:///corpora/work.",
            )


def _expression(text: str) -> Any:
    from pyspark.sql.functions import expr

    return expr(text)
