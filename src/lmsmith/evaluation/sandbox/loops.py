"""Event loops of asyncio where no sockets are allowed: a pipe wakes them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _End:
    """An end of a pipe, as far as asyncio uses a socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """The pipe never blocks."""

    def recv(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def send(self, body: bytes) -> int:
        return os.write(self._descriptor, body)

    def close(self) -> None:
        os.close(self._descriptor)


def _pair(*_: Any) -> tuple[_End, _End]:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    return _End(reader), _End(writer)


def allow_loops(*sources: str) -> None:
    """Let asyncio make event loops in this process, if a source speaks of it."""
    if any("async" in source for source in sources):
        import socket

        socket.socketpair = _pair  # type: ignore[assignment]


class Runner:
    """Runs coroutines of this process to their end, all of them in one loop."""

    def __init__(self) -> None:
        self._runner: Any = None

    def run(self, coroutine: Any) -> Any:
        """The coroutine's result."""
        allow_loops("async")
        import asyncio

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)
