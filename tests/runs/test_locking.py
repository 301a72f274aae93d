"""Only one holds a folder, and letting go or dying lets the next one in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.runs.locking import locked

HOLD = """
import os, sys, time
from pathlib import Path
from lmsmith.runs.locking import locked
from lmsmith.core.progress import QuietProgress
with locked(Path(sys.argv[1]), QuietProgress()):
    forked, is_forked = os.pipe()
    child = os.fork()
    if child:
        os.read(forked, 1)  # by now the worker has done what every fork does first
        print("held", child, flush=True)
    else:
        os.write(is_forked, b"1")
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with locked(folder, QuietProgress()):
        message = f"another process is at work here .process {os.getpid()}"
        with pytest.raises(UserError, match=message), locked(folder, QuietProgress()):
            pass
    with locked(folder, QuietProgress()):
        pass


def test_a_killed_holders_forked_worker_keeps_nothing(tmp_path: Path) -> None:
    source = str(Path(__file__).parents[2] / "src")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
        text=True,
    )
    assert process.stdout is not None
    word, worker = process.stdout.readline().split()
    try:
        assert word == "held"
        with pytest.raises(UserError, match=str(process.pid)), locked(tmp_path, QuietProgress()):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path, QuietProgress()):
            os.kill(int(worker), 0)  # it lives on
    finally:
        process.kill()
        os.kill(int(worker), 9)
        process.stdout.close()
        process.wait()


def test_a_file_in_the_way_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with (
        pytest.raises(UserError, match="is a file, not a folder"),
        locked(tmp_path / "taken", QuietProgress()),
    ):
        pass
