"""Run a load in a child process with limits of memory and time, and say how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmsmith.core.errors import UserError

MEMORY = 2 << 30
"""Bytes that a load may take besides what the parent has."""

SECONDS = 20
"""Limit of processor time, so that a busy machine is no fault."""

PATIENCE = 600.0
"""Seconds by the clock: a load that sleeps for ever takes no processor time."""

ALLOWED, TIMES = 128 << 20, 10
"""A load may take so many bytes more, and so many times its files' size."""

MOST_SAID = 20_000
"""Characters of a message."""


@dataclass(frozen=True)
class Ending:
    """How a load ended.

    Attributes:
        kind: ``read`` or ``refused``; or a fault: ``traceback``, ``signal``, ``hang``, ``memory``.
        text: the message, or the traceback.
        bytes: the memory that it took.
        seconds: by the clock.
    """

    kind: str
    text: str
    bytes: int = 0
    seconds: float = 0.0

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused")


def isolated(load: Callable[[], object], size: int) -> Ending:
    """Call ``load`` in a forked child; ``size`` is the number of bytes of its files."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _in_child(load, writing, said.fileno())
        os.close(writing)
        report = _read_all(reading, began + PATIENCE)
        if report is None:
            os.kill(child, signal.SIGKILL)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        said.seek(0)
        tail = said.read()[-3000:].decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    if report is None or code == -signal.SIGXCPU:
        return Ending("hang", tail, seconds=seconds)
    if code != 0 or not report:
        return Ending("signal", f"ended with {code}\n{tail}", seconds=seconds)
    found = json.loads(report)
    ending = Ending(found["kind"], found["text"], found["bytes"], seconds)
    if not ending.is_fault and ending.bytes > ALLOWED + TIMES * size:
        text = f"{ending.bytes:,} bytes for {size:,} ({ending.kind}: {ending.text})"
        return Ending("memory", text, ending.bytes, seconds)
    return ending


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """What the child writes until it closes its end; None if it takes too long."""
    content = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return content
        content += piece


def _in_child(load: Callable[[], object], writing: int, said: int) -> None:
    code = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        limit = _status_bytes("VmData") + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        kind, text = _ended(load)
        grown = max(0, _status_bytes("VmHWM") - before)
        os.write(writing, json.dumps({"kind": kind, "text": text, "bytes": grown}).encode())
        code = 0
    finally:
        os._exit(code)


def _ended(load: Callable[[], object]) -> tuple[str, str]:
    try:
        load()
    except UserError as error:
        if not error.problem.strip() or len(str(error)) > MOST_SAID:
            return "traceback", f"a message of {len(str(error))} characters: {str(error)[:500]}"
        return "refused", str(error)[:500]
    except BaseException:
        return "traceback", traceback.format_exc()[-6000:]
    return "read", ""


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
