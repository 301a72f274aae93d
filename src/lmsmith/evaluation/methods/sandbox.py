"""Programs that nobody has read, run where they can do no harm.

Each runs in a process of its own, in an empty temporary folder, with these limits, which are set by
`sandbox_child` before the program begins:

- processor time, memory, file size and open files by resource limits; wall time from outside;
- no network, no other process, no signal to one, no change of a file's rights: seccomp refuses
  the system calls, and root's powers are given up;
- no file outside its folder but the interpreter's own to read: Landlock refuses it.

Where the system has neither seccomp nor Landlock (they are Linux's), nothing is run. What remains:
the program shares its interpreter with its tests, and could trick these; a kernel's own faults are
open to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lmsmith.core.errors import UserError

Outcome = Literal["passed", "failed", "timed out"]

CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: of processor time.
        wall_seconds: of time; the machine may be busy, so several times as long.
        memory_bytes: of address space.
        file_bytes: of any file it writes.
        open_files: at once.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 32


@dataclass(frozen=True)
class Verdict:
    """How a program ended; ``detail`` is its error's last line."""

    outcome: Outcome
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_program(program: str, limits: Limits | None = None) -> Verdict:
    """Run a Python program; it passes if it comes to its end.

    Leaving early, by ``sys.exit(0)`` or otherwise, is no passing.

    Raises:
        UserError: this system cannot hold a program back.
    """
    check_system()
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="lmsmith-sandbox-") as folder:
        return _run_in(folder, program, limits)


@functools.cache
def check_system() -> None:
    """Make sure that programs are held back here, by trying.

    Raises:
        UserError: they are not.
    """
    with tempfile.TemporaryDirectory(prefix="lmsmith-sandbox-") as folder:
        verdict = _run_in(folder, "pass", Limits())
    if not verdict.passed:
        raise UserError(
            f"programs cannot be run safely on this system: {verdict.detail}",
            "code tasks need Linux 5.13 or newer on x86-64 or arm64; leave them out elsewhere",
        )


def _run_in(folder: str, program: str, limits: Limits) -> Verdict:
    word = secrets.token_hex(16)
    order = {"program": program, "word": word, "folder": folder, "limits": asdict(limits)}
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answer:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(CHILD), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=_environment(folder),
                pass_fds=[writer],
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            child.communicate(json.dumps(order).encode(), timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return Verdict("timed out", f"{limits.wall_seconds:g} s")
        except BrokenPipeError:
            pass
        finally:
            _end(child)
        said = answer.read(4096).decode("utf-8", "replace")
    if said == word:
        return Verdict("passed")
    if child.returncode == -signal.SIGXCPU or child.returncode == -signal.SIGKILL:
        return Verdict("timed out", f"{limits.cpu_seconds} s of the processor")
    return Verdict("failed", said or f"ended early, with code {child.returncode}")


def _environment(folder: str) -> Mapping[str, str]:
    """Nothing of ours: no keys, no paths."""
    return {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
