"""A connection to Spark: how it is configured and started, and actions run on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lmsmith.core.config import Problem
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.progress import Progress
from lmsmith.runs.signals import stop_if_requested

T = TypeVar("T")

_LOCAL = "local["
_ON_THIS_MACHINE = ("local", "local[", "local-cluster[")

_BATCHES = {
    # A document may have 100,000 characters: few are held at a time.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(1 << 25),
    "spark.sql.parquet.columnarReaderBatchSize": "256",
    "spark.sql.files.maxPartitionBytes": str(1 << 25),
    "spark.hadoop.parquet.block.size": str(1 << 25),
    "spark.sql.parquet.compression.codec": "zstd",
    # The number of tasks is this program's choice: Spark would make one of small partitions.
    "spark.sql.adaptive.enabled": "false",
}

_ALONE = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.log.level": "OFF",  # an action that fails raises what the log would say
}
"""Where no other machine takes part."""

_LOG = """
rootLogger.level = off
rootLogger.appenderRef.stderr.ref = stderr
appender.console.type = Console
appender.console.name = stderr
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n%ex
"""

_ERROR = f"{UserError.__module__}.{UserError.__qualname__}: "
_DAMAGED = "[FAILED_READ_FILE"
_LOST = ("ExecutorLostFailure", "Python worker exited unexpectedly", "OutOfMemoryError")


@dataclass(frozen=True)
class SparkConfig:
    """The cluster of ``engine = "spark"``."""

    master: str = ""
    """URL of the cluster: spark://HOST:7077, yarn, k8s://https://HOST:443, or local[4]. Without it
    that of spark-submit, else this machine with as many processes as ``workers`` says."""
    work: str = ""
    """Folder for the documents between the steps, which all machines reach, such as
    hdfs:///corpora/work or s3a://bucket/work; in the result's folder by default."""
    conf: dict[str, str] = field(default_factory=dict)
    """Spark's own settings, in the table ``[spark.conf]``, e.g. "spark.executor.memory" = "8g"."""

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Names of Spark's settings with their dots, also where TOML made tables of them."""
        conf = table.get("conf")
        return {**table, "conf": dict(_flat(conf))} if isinstance(conf, Mapping) else table

    def check(self) -> list[Problem]:
        """A setting that is none of Spark's, or that has a place of its own."""
        problems = []
        for name, value in self.conf.items():
            if name == "spark.master":
                problems.append(Problem(f"conf.{name}", value, "has a place", "set spark.master"))
            elif not name.startswith("spark."):
                expected = "no setting of Spark: their names begin with spark."
                problems.append(Problem(f"conf.{name}", value, expected))
        return problems


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, bool):
            yield before + name, str(value).lower()
        else:
            yield before + name, str(value) if isinstance(value, int | float) else value


def start(config: SparkConfig, workers: int, spill: Path) -> tuple[Any, bool]:
    """A session, and whether this call started it.

    Args:
        workers: processes, where this machine is the cluster.
        spill: folder for what a shuffle writes to this machine's disk.

    Raises:
        UserError: PySpark or Java is missing, or the cluster does not answer.
    """
    with needs_extra("spark"):
        from pyspark import SparkConf
        from pyspark.sql import SparkSession
    if (running := SparkSession.getActiveSession()) is not None:
        return running, False
    _need_java()
    # Rows go by Arrow alone: no step of this program makes a DataFrame of pandas.
    message = "PySpark does not yet fully support pandas"
    warnings.filterwarnings("ignore", message, FutureWarning)
    conf = SparkConf()
    for name, value in config.conf.items():
        conf.set(name, value)
    if config.master:
        conf.setMaster(config.master)
    elif conf.get("spark.master") is None:
        conf.setMaster(f"{_LOCAL}{workers},4]")  # a task whose worker dies is tried four times
    conf.setIfMissing("spark.app.name", "lmsmith corpus build")
    conf.setIfMissing("spark.ui.showConsoleProgress", "false")
    for name, value in _BATCHES.items():
        conf.setIfMissing(name, value)
    if is_alone(str(conf.get("spark.master"))):
        _for_this_machine(conf, spill)
    try:
        with _own_signals():
            return SparkSession.builder.config(conf=conf).getOrCreate(), True
    except Exception as error:
        problem = f"Spark does not start with master {conf.get('spark.master')}: {_first(error)}"
        raise UserError(problem, "Check spark.master and [spark.conf].") from error


def is_alone(master: str) -> bool:
    """Whether this machine is the whole cluster."""
    return master.startswith(_ON_THIS_MACHINE)


def _need_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin/java").exists():
        return
    if home or shutil.which("java") is None:
        problem = f"JAVA_HOME is {home}, without bin/java" if home else "Spark needs Java, not here"
        raise UserError(
            f"{problem}: engine = spark needs Java 17 or later",
            "Install it (Debian: apt install openjdk-17-jre-headless), or set JAVA_HOME.",
        )


def _for_this_machine(conf: Any, spill: Path) -> None:
    """This Python and this package for the workers; what a killed build spilled is removed."""
    for name, value in _ALONE.items():
        conf.setIfMissing(name, value)
    os.environ.setdefault("SPARK_LOCAL_IP", _ALONE["spark.driver.host"])
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True)
    conf.setIfMissing("spark.local.dir", str(spill.absolute()))
    log = spill / "log4j2.properties"
    log.write_text(_LOG)
    option = f"-Dlog4j2.configurationFile={log.absolute().as_uri()}"
    for role in ("driver", "executor"):
        conf.setIfMissing(f"spark.{role}.extraJavaOptions", option)
    conf.setIfMissing("spark.pyspark.python", sys.executable)
    package = Path(__file__).parents[3]
    paths = dict.fromkeys([str(package), *filter(None, sys.path)])
    conf.setIfMissing("spark.executorEnv.PYTHONPATH", os.pathsep.join(paths))
    conf.setIfMissing("spark.executorEnv.OMP_NUM_THREADS", "1")
    conf.setIfMissing("spark.executorEnv.RAYON_NUM_THREADS", "1")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """PySpark puts a handler of its own in the place of Ctrl-C's; put that back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Actions:
    """Actions on Spark, one after another: shown, interruptible, their tasks counted."""

    def __init__(self, session: Any, progress: Progress) -> None:
        self._context, self._progress = session.sparkContext, progress
        self._number = 0
        self.tasks: dict[str, list[int]] = {}
        """Name of an action → tasks of each stage that it ran."""
        self.seconds: dict[str, float] = {}
        """Name of an action → the time that it took."""

    def run(self, name: str, action: Callable[[], T], counted: bool = True) -> T:
        """The result of an action.

        Args:
            counted: whether its tasks are kept in `tasks`.

        Raises:
            Interrupted: a signal asked to stop; what ran is cancelled.
            UserError: of a task, or executors were lost too often.
        """
        from pyspark import InheritableThread

        self._number += 1
        group = f"{name}-{self._number}"
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            self._context.setJobGroup(group, name, interruptOnCancel=True)
            try:
                results.append(action())
            except BaseException as error:  # raised again by the thread that waits
                errors.append(error)

        thread = InheritableThread(target=call, daemon=True)
        thread.start()
        started, shown = time.monotonic(), 0
        try:
            while thread.is_alive():
                thread.join(0.1)
                stop_if_requested()
                shown = self._show(name, group, shown)
        except BaseException:
            with contextlib.suppress(Exception):  # a signal may have ended Java as well
                self._context.cancelJobGroup(group)
            thread.join(10)
            raise
        finally:
            if shown:
                self._progress.end()
        if counted:
            self.seconds[name] = time.monotonic() - started
            self.tasks[name] = [total for total, _ in self._stages(group)]
        if errors:
            raise _translated(errors[0])
        return results[0]

    def _show(self, name: str, group: str, shown: int) -> int:
        stages = self._stages(group)
        total = sum(count for count, _ in stages)
        if total != shown:
            self._progress.begin(name, total, "tasks")
        if total:
            self._progress.update(sum(done for _, done in stages))
        return total

    def _stages(self, group: str) -> list[tuple[int, int]]:
        """(tasks, those that are done) of each stage of a group that is run."""
        tracker = self._context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
        numbers = sorted({stage for job in jobs if job for stage in job.stageIds})
        stages = [tracker.getStageInfo(number) for number in numbers]
        return [(stage.numTasks, stage.numCompletedTasks) for stage in stages if stage]


def _translated(error: BaseException) -> BaseException:
    """A mistake that a worker found as the `UserError` that it is."""
    text = str(error)
    if _ERROR in text:
        problem, _, rest = text.partition(_ERROR)[2].partition("\n")
        fix = rest.partition("\n")[0]
        return UserError(problem, fix.strip() if fix.startswith("  ") else "")
    if "No space left on device" in text:
        fix = "Free space, then run the same command again; finished steps are not run again."
        return UserError("the disk is full", fix)
    if (said := _line(text, _DAMAGED)) is not None:
        fix = "Remove the folder that this file is in; the same command makes it again."
        return UserError(said, fix)
    if (said := next(filter(None, (_line(text, sign) for sign in _LOST)), None)) is not None:
        return UserError(
            f"workers ended in the middle of their work, too often ({said})",
            "Often the memory was full: set spark.executor.memory or spark.driver.memory in "
            "[spark.conf]. The same command goes on after the last finished step.",
        )
    return error


def _line(text: str, sign: str) -> str | None:
    """From a sign to the end of its line."""
    return f"{sign}{text.partition(sign)[2].partition(chr(10))[0]}"[:400] if sign in text else None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
