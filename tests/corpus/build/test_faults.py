"""Builds that are killed, lose a worker or meet a full disk: one message, the same bytes after."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from built_corpus import after
from corpus.build.conftest import Build, content
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.corpus.build import worker
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.engine import Data, Pair
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.worker import Pool
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.runs.signals import StopSignal

COMMAND = [sys.executable, "-m", "lmsmith", "corpus", "build"]


def children(pid: int) -> list[int]:
    place = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in place.read_text().split()] if place.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_workers_end_with_a_killed_parent_and_the_next_build_goes_on(
    corpus: Path, build: Build
) -> None:
    build(corpus, "out=whole")
    settings = ["--set", "workers=2", "--quiet"]
    process = subprocess.Popen([*COMMAND, str(corpus), *settings])
    found: list[int] = []
    while len(found) < 2 and process.poll() is None:
        time.sleep(0.01)
        found = children(process.pid)
    time.sleep(0.3)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(is_alive, found)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, found))
    build(corpus, "workers=2")
    assert content(corpus.parent / "out") == content(corpus.parent / "whole")


def ended(number: int) -> int:
    """A task in whose middle the system ends the worker."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_one_message() -> None:
    pool = Pool(2)
    with pytest.raises(UserError, match=r"ended in the middle of its work \(signal 9\)"):
        list(pool.run(ended, [(n,) for n in range(8)]))
    assert dict(pool.run(abs, [(-n,) for n in range(4)])) == {0: 0, 1: 1, 2: 2, 3: 3}
    pool.close()


def failing(number: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", f"/data/{number}")


def test_the_error_of_a_worker_arrives_as_it_is() -> None:
    pool = Pool(2)
    with pytest.raises(OSError, match="No space left") as caught:
        list(pool.run(failing, [(n,) for n in range(4)]))
    assert caught.value.errno == errno.ENOSPC
    pool.close()
    assert worker.Pool(1).workers == 1


def interrupting(documents: Iterable[Document], _none: None) -> Iterator[Document]:
    """A step in whose middle somebody presses Ctrl-C."""
    for each in documents:
        if each.id == "5":
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(each.id)
        yield each


def keys(documents: Iterable[Document], _none: None) -> Iterator[Pair]:
    for each in interrupting(documents, None):
        for number in range(100):
            yield f"{each.id} {number}", 1


seen: list[str] = []


def test_one_worker_stops_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    documents = [Document(str(n), "s", f"text {n}") for n in range(40)]

    def mapped(engine: LocalEngine, data: Data) -> Data:
        return engine.map(data, "interrupting", interrupting)

    def paired(engine: LocalEngine, data: Data) -> Data:
        engine.pairs(data, "keys", keys)
        return data

    for number, step in enumerate((mapped, paired)):
        seen.clear()
        with pytest.raises(Interrupted), StopSignal():
            after(tmp_path / str(number), documents, step, 1)
        assert 5 < len(seen) <= 7
    documents = [each for each in documents if each.id != "5"]
    assert len(after(tmp_path / "2", documents, mapped, 1).texts) == 39


def test_a_file_that_cannot_be_written_leaves_the_old_corpus(corpus: Path, build: Build) -> None:
    """A limit on the size of files, as a full disk, stops the build in the middle."""
    build(corpus)
    before = content(corpus.parent / "out")
    settings = ["--set", "shards.vocabulary_size=320", "--set", "language.enabled=false"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [*COMMAND, str(corpus), *settings, "--quiet"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "grew past the size" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    after = content(corpus.parent / "out")
    assert {name: after[name] for name in before} == before
    FinishedCorpus.load(corpus.parent / "out").check()
    record = build(corpus, *settings[1::2])
    assert record["recipe"]["shards"]["vocabulary_size"] == 320
