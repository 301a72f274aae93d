"""A few damaged files of every format in CI; ``make fuzz`` reads thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError

RUN = Path(__file__).with_name("run.py")
COUNT = 24
SEED = 11


def test_damaged_files_of_every_format_are_read_or_refused() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, str(RUN), "--count", str(COUNT), "--seed", str(SEED)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


def fail() -> None:
    raise ValueError("a programming error")


def refuse() -> None:
    raise UserError("no", "do")


def sleep_without_end() -> None:
    while True:
        pass


def take_memory() -> None:
    bytearray(b"x") * (400 << 20)


def take_too_much_memory() -> None:
    bytearray(b"x") * (3 << 30)


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (lambda: None, "read"),
        (refuse, "refused"),
        (fail, "traceback"),
        (os.abort, "signal"),
        (take_memory, "memory"),
        (take_too_much_memory, "traceback"),
    ],
)
def test_each_ending_is_told(load: object, kind: str) -> None:
    assert callable(load)
    words = "from fuzz.isolate import isolated; from fuzz.test_fuzz import *; "
    words += f"print(isolated({_name(load)}, 10).kind)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.strip() == kind, done.stderr


def _name(load: object) -> str:
    name = getattr(load, "__name__", "")
    return "lambda: None" if "lambda" in name else name if name != "abort" else "os.abort"
