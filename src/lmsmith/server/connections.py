"""Limits of connections: number, size and time of headers, pace of bodies and of readers.

They hold before anybody is authenticated. When there are too many connections, one that does
nothing is closed for a new one, or one whose client does not read: no number of them keeps others
out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lmsmith.server.errors import ApiError
from lmsmith.server.proxy import is_proxy

log = logging.getLogger("lmsmith.server")

RESERVED_FILES = 48
"""File descriptors for the database, models and the rest; connections get the others."""

MAX_CONNECTIONS = 2000
"""Where the system allows more files than anybody needs."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        total: connections at the same time.
        of_address: those of one address that is neither this machine's own nor a proxy's.
        url_bytes, header_bytes, headers: of a request's head; header_bytes is their sum.
        head_seconds: from the first byte, or the connection's begin, to the end of the headers.
        body_seconds, body_rate: a body may take so long, and a second more for each ``body_rate``
            bytes that have come.
        reader_seconds: a reader of a response who takes nothing for so long is cut off.
        unread_seconds: after so long, such a reader gives way to a new connection.
        proxies: addresses and networks that bring everybody's requests.
    """

    total: int = 500
    of_address: int = 250
    url_bytes: int = 8 << 10
    header_bytes: int = 32 << 10
    headers: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    body_rate: float = 1000.0
    reader_seconds: float = 60.0
    unread_seconds: float = 2.0
    proxies: tuple[str, ...] = ()

    @classmethod
    def of_system(cls, proxies: tuple[str, ...] = ()) -> ConnectionLimits:
        """As many connections as this process may open files, less `RESERVED_FILES`."""
        try:
            import resource
        except ImportError:  # Windows has no such limit
            return cls(proxies=proxies)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            files = MAX_CONNECTIONS
        total = max(8, min(MAX_CONNECTIONS, files - RESERVED_FILES))
        return cls(total=total, of_address=max(4, total // 2), proxies=proxies)


@dataclass
class Connections:
    """The open connections of a server, and how many of each address."""

    limits: ConnectionLimits
    open: set[LimitedProtocol] = field(default_factory=set)
    of_address: Counter[str] = field(default_factory=Counter)

    def protocol(self) -> type[LimitedProtocol]:
        """The class that uvicorn makes for each connection."""
        return type("Protocol", (LimitedProtocol,), {"all": self})

    def add(self, new: LimitedProtocol) -> None:
        """Count a connection; one that does nothing is closed if they are too many."""
        self.open.add(new)
        self.of_address[new.address] += 1
        limits, problem = self.limits, ""
        of_many = _is_local(new.address) or is_proxy(new.address, limits.proxies)
        if self.of_address[new.address] > limits.of_address and not of_many:
            others = [each for each in self.open if each.address == new.address]
            if not _close_idle(others, new):
                problem = "too many connections from your address"
        elif len(self.open) > limits.total and not _close_idle(self.open, new):
            problem = "the server has too many connections"
        if problem:
            new.refuse(503, f"{problem}; try again later", "too_many_connections")

    def remove(self, old: LimitedProtocol) -> None:
        if old in self.open:
            self.open.remove(old)
            self.of_address[old.address] -= 1
            if not self.of_address[old.address]:
                del self.of_address[old.address]

    def close_slow(self) -> None:
        """Close the connections whose time is over."""
        now = time.monotonic()
        for each in list(self.open):
            each.check(now)


def _is_local(address: str) -> bool:
    """Whether it is this machine, as of a proxy that brings everybody's requests."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True


def _close_idle(connections: Iterable[LimitedProtocol], new: LimitedProtocol) -> bool:
    """Close the connection that has waited longest for its client; False if there is none.

    Clients who do not read what they have asked for come last.
    """
    others, now = [each for each in connections if each is not new], time.monotonic()
    waiting = [each for each in others if each.waits_for_client]
    unread = [each for each in others if each.unread_for(now) > each.all.limits.unread_seconds]
    if waiting:
        oldest = min(waiting, key=lambda each: (each.in_body, each.since))
    elif unread:
        oldest = max(unread, key=lambda each: each.unread_for(now))
        log.warning("%s reads nothing of a response; it gives way to others", oldest.address)
    else:
        return False
    oldest.all.remove(oldest)
    oldest.transport.abort()
    return True


class _Transport:
    """A transport that takes no more once it closes, when uvloop's fails: a response may be under
    way as its connection is cut off."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's connection, within `ConnectionLimits`.

    Attributes:
        since: the time from which its client is waited for.
        in_head, in_body: whether a part of the headers, or of the body, is still to come.
    """

    all: Connections

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.since, self.in_head, self.in_body = time.monotonic(), False, False
        self._head_bytes = self._body_bytes = self._raw_bytes = 0
        self._paused_at: float | None = None
        self._refusal: ApiError | None = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_busy(self) -> bool:
        """Whether a response is being made."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        return not self.is_busy or self.in_body

    def unread_for(self, now: float) -> float:
        """Seconds for which the client has taken nothing of a response that waits for it."""
        return 0.0 if self._paused_at is None else now - self._paused_at

    # Of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Transport(transport)))
        self.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        began_in_head = self.in_head
        if self.in_body:
            self._raw_bytes += len(data)
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        if began_in_head and self.in_head:
            self._head_bytes += len(data)  # perhaps in the midst of one endless header
        overhead = self._raw_bytes - 16 * self._body_bytes  # of chunks as short as they can be
        if max(self._head_bytes, overhead) > self.all.limits.header_bytes:
            self.refuse(431, "the headers are too long", "headers_too_large")

    def pause_writing(self) -> None:
        self._paused_at = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused_at = None
        super().resume_writing()

    # Of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head, self.in_body = True, False
        self._head_bytes = self._body_bytes = self._raw_bytes = 0
        if not self.is_busy:
            self.since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > self.all.limits.url_bytes:
            self._refuse(414, "the address is too long", "url_too_long")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        limits, most = self.all.limits, self._head_bytes
        if most > limits.header_bytes or len(self.headers) >= limits.headers:
            self._refuse(431, "the headers are too long or too many", "headers_too_large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.in_head, self.in_body, self._head_bytes = False, True, 0
        if not self.is_busy:
            self.since = time.monotonic()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    # Refusals

    def check(self, now: float) -> None:
        """Close the connection if its time is over."""
        limits = self.all.limits
        if self.unread_for(now) > limits.reader_seconds:
            log.warning("%s reads no more of a response; it is cut off", self.address)
            self.transport.abort()
        elif self.in_body:
            allowed = limits.body_seconds + self._body_bytes / limits.body_rate
            if self.flow.read_paused:  # the server does not read
                self.since = max(self.since, now - allowed)
            elif now - self.since > allowed:
                self.refuse(408, "the body comes too slowly", "request_timeout")
        elif not self.is_busy and now - self.since > limits.head_seconds:
            if self.in_head:
                self.refuse(408, "the headers come too slowly", "request_timeout")
            else:
                self.transport.close()

    def refuse(self, status: int, problem: str, code: str) -> None:
        """Answer with an error, unless a response has begun, and close."""
        self._refusal = ApiError(status, problem, _kind(status), code=code)
        if self.cycle is not None and self.cycle.response_started and self.is_busy:
            self.transport.abort()
        else:
            self.send_400_response(problem)

    def _refuse(self, status: int, problem: str, code: str) -> None:
        """From within the parser, which is ended by the error."""
        self._refusal = ApiError(status, problem, _kind(status), code=code)
        raise self._refusal

    def send_400_response(self, msg: str) -> None:
        """A refusal in the API's shape, whatever the reason."""
        error = self._refusal or ApiError(400, "this is no HTTP request", code="invalid_request")
        self._refusal = error
        body = json.dumps(error.body()).encode()
        lines = [
            f"HTTP/1.1 {error.status} {_REASONS[error.status]}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "X-Content-Type-Options: nosniff",
            "Connection: close\r\n\r\n",
        ]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join(lines).encode() + body)
            self.transport.close()


def _kind(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
