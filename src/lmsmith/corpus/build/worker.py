"""Worker processes of the local engine: started from this file, fed by pipes, ended with them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from lmsmith.core.errors import UserError
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import peak_memory_bytes

_LENGTH = 8
_PR_SET_PDEATHSIG = 1


def _send(stream: IO[bytes], value: object) -> None:
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(content).to_bytes(_LENGTH, "little"))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    header = stream.read(_LENGTH)
    if len(header) < _LENGTH:
        raise EOFError
    size = int.from_bytes(header, "little")
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return pickle.loads(content)


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches the parent alone, which ends its workers.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


class Pool:
    """So many worker processes; with one, the work is done in this process.

    No worker imports the program's main module, so a script needs no guard. A worker ends when
    the pipe from its parent does, even if the parent was killed.

    Attributes:
        peak_memory_bytes: the most that a worker had resident until the end of its last task.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.peak_memory_bytes = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """``function(*task)`` for each task: (place, result), as they finish.

        Raises:
            Interrupted: a signal asked to stop.
            UserError: of a task, or a worker was killed.
        """
        if self.workers == 1 or len(tasks) < 2:
            for place, task in enumerate(tasks):
                stop_if_requested()
                result = function(*task)
                self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes())
                yield place, result
            return
        while len(self._processes) < self.workers:
            self._processes.append(_start())
        waiting = iter(enumerate(tasks))
        busy: dict[int, int] = {}
        with selectors.DefaultSelector() as selector:
            for number, process in enumerate(self._processes):
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, number)
                self._feed(number, function, waiting, busy)
            while busy:
                ready = selector.select(0.2)
                stop_if_requested()
                for event, _ in ready:
                    number = event.data
                    place = busy.pop(number)
                    result = self._result(number)
                    self._feed(number, function, waiting, busy)
                    yield place, result

    def _feed(
        self,
        number: int,
        function: Callable[..., Any],
        waiting: Iterator[tuple[int, tuple[Any, ...]]],
        busy: dict[int, int],
    ) -> None:
        if (following := next(waiting, None)) is not None:
            place, task = following
            stream = self._processes[number].stdin
            assert stream is not None
            try:
                _send(stream, (function, task))
            except OSError as error:
                raise self._lost(number) from error
            busy[number] = place

    def _result(self, number: int) -> Any:
        stream = self._processes[number].stdout
        assert stream is not None
        try:
            outcome, value, peak = _receive(stream)
        except EOFError as error:
            raise self._lost(number) from error
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        if outcome == "done":
            return value
        raise value

    def _lost(self, number: int) -> UserError:
        code = self._processes[number].wait()
        self.close()
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        return UserError(
            f"a worker process ended in the middle of its work ({why})",
            "Often the memory was full: lower workers. The same command goes on from what is done.",
        )

    def close(self) -> None:
        """End the workers; what they were writing is not half there, but not there."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
            process.wait()
        self._processes = []


def _sendable(error: Exception) -> Exception:
    """The error, or its traceback as a text where it cannot be sent."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        error.add_note("".join(traceback.format_exception(error)))
        return error
    return RuntimeError("".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    """Let the system end this process when its parent is killed (Linux; elsewhere the pipe does).

    A worker that outlived it would write beside those of the next build.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve() -> None:
    """Do what comes by standard input until it ends."""
    _end_with_parent()
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints does not mix with the replies
    while True:
        try:
            function, task = _receive(requests)
        except EOFError:
            return
        try:
            outcome: tuple[str, Any] = ("done", function(*task))
        except Exception as error:
            outcome = ("failed", _sendable(error))
        try:
            _send(replies, (*outcome, peak_memory_bytes()))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    serve()
