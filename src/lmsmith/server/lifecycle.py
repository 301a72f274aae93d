"""The server's life: it listens, serves, and at shutdown finishes running requests."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lmsmith.core.errors import UserError
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import shutting_down

log = logging.getLogger("lmsmith.server")


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM drains and is no failure.

    Args:
        app: the application.
        engine: its requests are drained.
        listening: an open socket.
        ready: called once requests are accepted.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: AsyncEngine,
        listening: socket.socket,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        drain = engine.limits.drain_seconds
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                proxy_headers=False,
                timeout_graceful_shutdown=int(drain) + 5,
            )
        )
        self._engine, self._listening, self._ready = engine, listening, ready
        self._draining: asyncio.Task[None] | None = None

    def serve_until_stopped(self) -> None:
        """Serve until a signal, or `stop` in another thread; running requests are finished."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve([self._listening]))

    def stop(self) -> None:
        """Accept no more requests, finish the running ones, and end `serve_until_stopped`."""
        self._engine.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.draining = True
        self._draining = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            self._draining.cancel()

    async def _cut_off(self) -> None:
        await asyncio.sleep(self._engine.limits.drain_seconds)
        if self._engine.generations:
            log.warning("%d requests are cut off", len(self._engine.generations))
        self._engine.thread.fail_all(shutting_down())

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The first SIGINT or SIGTERM drains, a second one ends at once; neither is an error."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.stop()


def is_any(listening: socket.socket) -> bool:
    """Whether a socket listens at every address of this machine."""
    return ipaddress.ip_address(str(listening.getsockname()[0])).is_unspecified


def addresses(listening: socket.socket, host: str) -> list[str]:
    """Where a server can be opened: from this machine, then from others where they reach it.

    Args:
        listening: its socket.
        host: as it was named; an address that means all of them is none to open.
    """
    port, family = listening.getsockname()[1], listening.family
    names = [host]
    if is_any(listening):
        names = ["::1" if family == socket.AF_INET6 else "127.0.0.1", *_outside(family)]
    return [f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}" for name in names]


def _outside(family: socket.AddressFamily) -> list[str]:
    """The address by which others reach this machine, if there is a network."""
    elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # for documents alone
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # sends nothing; the system chooses the way out
        return [str(probe.getsockname()[0])]
    return []


def listen(host: str, port: int) -> socket.socket:
    """An open socket; port 0 is any that is free.

    Raises:
        UserError: the address cannot be had.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: there is no such port", "choose one of 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=512, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"{host}:{port}: cannot listen there ({error})", "choose another --port"
        ) from error
