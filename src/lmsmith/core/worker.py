"""A process of its own for other people's programs, such as templates; killed when it is slow."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

from lmsmith.core.errors import UserError

START_SECONDS = 120.0


class Worker:
    """One worker process, started at the first request and again after it was killed.

    The program writes ``ready`` and a line end, then one line for each request. It limits its own
    memory. A forked child of this process starts its own worker, unless it becomes the `owner`.

    Args:
        program: a Python file that imports nothing of lmsmith.
        needs: the package that it imports, for the message if it does not start.
    """

    def __init__(self, program: Path, needs: str) -> None:
        self._program, self._needs = program, needs
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: subprocess.Popen[bytes] | None = None  # kept, or Python warns of its end
        self.owner = os.getpid()
        atexit.register(self.close)

    def ask(self, request: bytes, seconds: float) -> bytes:
        """The line that answers a request; empty if the process ended or had to be killed.

        Args:
            request: as the program reads it; it must read all of it before it answers.
            seconds: wall-clock time after which the process is killed.
        """
        if self.owner != os.getpid():
            self._inherited, self._process = self._process, None
            self._lock, self.owner = threading.Lock(), os.getpid()
        with self._lock:
            if self._process is None:
                self._start()
            return self._exchange(request, seconds)

    def restart_if_ended(self) -> None:
        """Start the process before it is needed, also where somebody else has ended it."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(self._program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._exchange(b"", START_SECONDS) != b"ready\n":
            self._end()
            raise UserError(
                f"the process of {self._program.name} did not start",
                f"check that {self._needs} is installed for this Python: pip install {self._needs}",
            )

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        parts: list[bytes] = []
        whole = False
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(request)
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while not whole and selector.select(deadline - time.monotonic()):
                    if not (read := os.read(process.stdout.fileno(), 1 << 20)):
                        break
                    parts.append(read)
                    whole = read.endswith(b"\n")
        except OSError:
            pass
        finally:
            if not whole:
                self._end()
        return b"".join(parts) if whole else b""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()

    def close(self) -> None:
        """End the process, if it is this process's own."""
        if self.owner == os.getpid():
            self._end()
