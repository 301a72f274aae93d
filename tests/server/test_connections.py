"""Nobody keeps others out by connections: endless, slow, idle or too many ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from worlds import HTTP, LIMITS, RANDOM, Running, running

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store
from lmsmith.server import pages
from lmsmith.server.app import Server, bound_socket
from lmsmith.server.connections import ConnectionLimits

QUICK = ConnectionLimits(
    total=12,
    head_seconds=1.0,
    body_seconds=1.0,
    body_rate=100_000,
    reader_seconds=1.0,
    unread_seconds=0.2,
)
BODY = b'{"prompt": "tea"}'
HEAD = (
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n"
)


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    with running({"random": RANDOM}, connections=QUICK) as served:
        yield served


@contextlib.contextmanager
def connected(served: Running) -> Iterator[socket.socket]:
    port = int(served.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as made:
        yield made


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            found += part
    return found


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


def is_open(served: Running) -> bool:
    body, headers = {"prompt": "tea"}, {"connection": "close"}  # one kept open may be closed
    found = HTTP.post(f"{served.address}/tokenize", json=body, headers=headers, timeout=60)
    return found.status_code == 200


def send_until_closed(connection: socket.socket, part: bytes, most: int) -> int:
    """Bytes that were taken."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.sendall(part)
            sent += len(part)
    return sent


START = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("begin", "part", "code"),
    [
        (START + b"X: ", b"x" * 60_000, "headers_too_large"),
        (START, b"X: y\r\n" * 1000, "headers_too_large"),
        (START, b"".join(b"X%d: y\r\n" % n for n in range(1000)), "headers_too_large"),
        (START, b"x" * 60_000, "headers_too_large"),
        (START, b"Cookie: " + b"x" * 9_000 + b"\r\n", "headers_too_large"),
        (START + b"Authorization: Bearer ", b"x" * 60_000, "headers_too_large"),
        (b"GET /", b"x" * 60_000, "url_too_long"),
        (b"GET /?search=", b"x" * 60_000, "url_too_long"),
        (b"G", b"E" * 60_000, "invalid_request"),
    ],
)  # fmt: skip
def test_endless_heads_are_refused_early(
    quick: Running, begin: bytes, part: bytes, code: str
) -> None:
    with connected(quick) as connection:
        connection.sendall(begin)
        assert send_until_closed(connection, part, 300 << 20) < 16 << 20
    with connected(quick) as connection:  # what is answered, if the client listens
        connection.sendall((begin + part)[:50_000])
        assert error_of(read_all(connection))[1] in (code, "request_timeout")
    assert is_open(quick)


@pytest.mark.parametrize("extension", [b"1;" + b"x" * 60_000, b"1" + b" " * 60_000])
def test_chunks_of_nothing_but_extensions_are_refused(quick: Running, extension: bytes) -> None:
    head = START.replace(b"GET /health", b"POST /tokenize") + b"Transfer-Encoding: chunked\r\n"
    head += b"Content-Type: application/json\r\n\r\n"
    with connected(quick) as connection:
        connection.sendall(head)
        taken = send_until_closed(connection, extension + b"\r\nx\r\n", 300 << 20)
        assert taken < 16 << 20
    with connected(quick) as connection:  # trailers are headers too
        connection.sendall(head + b"1\r\n1\r\n0\r\n")
        assert send_until_closed(connection, b"X: " + b"x" * 60_000 + b"\r\n", 300 << 20) < 16 << 20


@pytest.mark.parametrize(
    "begin", [b"", b"\r\n", b"G", START, START + b"X: y", HEAD % 100 + b"\r\n", HEAD % 9 + b"\r\n{"]
)
@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_who_goes_no_further_is_closed(quick: Running, begin: bytes, trickle: bytes) -> None:
    with connected(quick) as connection:
        connection.sendall(begin)
        connection.settimeout(0.2)
        for _ in range(100):  # a hang would end it
            try:
                if not connection.recv(2**16):
                    break
            except TimeoutError:
                if b"\r\n\r\n" in begin and b"%d" % 9 in begin:
                    continue
                with contextlib.suppress(ConnectionError):
                    connection.sendall(trickle)
            except ConnectionError:
                break
        else:
            raise AssertionError("it is still open")
    assert is_open(quick)


def test_a_slow_body_is_told(quick: Running) -> None:
    with connected(quick) as connection:
        connection.sendall(HEAD % 100 + b"\r\n{")
        assert error_of(read_all(connection)) == (408, "request_timeout")
    with connected(quick) as connection:
        connection.sendall(START)
        assert error_of(read_all(connection)) == (408, "request_timeout")


def test_a_body_that_comes_steadily_is_taken(quick: Running) -> None:
    body = b'{"prompt": "tea"' + b" " * 400_000 + b"}"
    with connected(quick) as connection:
        connection.sendall(HEAD % len(body) + b"Connection: close\r\n\r\n")
        for first in range(0, len(body), 50_000):
            connection.sendall(body[first : first + 50_000])
            time.sleep(0.2)  # longer than body_seconds in all
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begin", [b"", START, HEAD % 100 + b"\r\n{"])
def test_many_idle_connections_keep_nobody_out(begin: bytes) -> None:
    # Their time does not run out: they give way, or nobody else gets in.
    limits = replace(QUICK, head_seconds=600.0, body_seconds=600.0)
    with running({"random": RANDOM}, connections=limits) as served, contextlib.ExitStack() as stack:
        for _ in range(5 * limits.total):
            connection = stack.enter_context(connected(served))
            with contextlib.suppress(ConnectionError):
                connection.sendall(begin)
        for _ in range(3):
            assert is_open(served)
        assert len(served.server.connections.open) <= limits.total


def test_a_reader_who_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    owner = store.person("owner", "admin").id
    name = store.begin(owner).id
    for _ in range(12):
        store.add_message(owner, name, None, "user", "x" * 1_000_000)
    with running({"random": RANDOM}, connections=QUICK, store=store) as served:
        with connected(served) as connection:
            path = f"/api/conversations/{name}".encode()
            connection.sendall(START.replace(b"/health", path) + b"\r\n")
            until = time.monotonic() + 20
            while not (open_ := served.server.connections.open) and time.monotonic() < until:
                time.sleep(0.05)
            while open_ and time.monotonic() < until:
                time.sleep(0.1)
            assert not open_
        assert is_open(served)
    store.close()


@pytest.mark.parametrize("path", ["/assets/big.js", "/api/conversations/NAME"])
@pytest.mark.parametrize("trickles", [False, True])
def test_readers_who_take_nothing_keep_nobody_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    trickles: bool,
) -> None:
    content = b"x" * 12_000_000
    big = pages.Asset(content, content, "text/javascript", '"1"')
    monkeypatch.setattr(pages, "assets", lambda: {"assets/big.js": big})
    limits = replace(QUICK, reader_seconds=60.0)  # only those who give way are closed
    store = Store(tmp_path / "feedback.db")
    owner = store.person("owner", "admin").id
    name = store.begin(owner).id
    for _ in range(12):
        store.add_message(owner, name, None, "user", "x" * 1_000_000)
    request = START.replace(b"/health", path.replace("NAME", name).encode()) + b"\r\n"
    with running({"random": RANDOM}, connections=limits, store=store) as served:
        with contextlib.ExitStack() as stack:
            readers = []
            for _ in range(limits.total + 4):
                made = socket.socket()
                stack.enter_context(made)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                made.connect(("127.0.0.1", int(served.address.rpartition(":")[2])))
                with contextlib.suppress(ConnectionError):
                    made.sendall(request * 20)
                readers.append(made)
            until, answered = time.monotonic() + 20, 0
            while answered < 3 and time.monotonic() < until:
                time.sleep(0.3)
                for made in readers if trickles else ():
                    with contextlib.suppress(OSError):
                        made.settimeout(0.01)
                        made.recv(200)
                with contextlib.suppress(httpx.TransportError), connected(served) as new:
                    new.sendall(START + b"Connection: close\r\n\r\n")
                    answered += read_all(new).startswith(b"HTTP/1.1 200")
            assert answered == 3
        assert is_open(served)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    store.close()


def test_addresses_are_counted_and_forgotten(quick: Running) -> None:
    connections = quick.server.connections
    with connected(quick):
        until = time.monotonic() + 10
        while not connections.of_address and time.monotonic() < until:
            time.sleep(0.01)
    until = time.monotonic() + 10
    while connections.open and time.monotonic() < until:
        time.sleep(0.05)
    assert not connections.of_address


def test_connections_leave_files_for_the_rest() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert ConnectionLimits.of_system().total == 208
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_refuses_connections_until_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_socket("127.0.0.1", 0) as bound:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound.getsockname(), 20)

        async def startup(self: Any, sockets: Any = None) -> None:
            bound.bind(bound.getsockname())  # as if another program had begun to listen

        monkeypatch.setattr(uvicorn.Server, "startup", startup)
        engine: Any = SimpleNamespace(limits=LIMITS)
        app: Any = None
        with pytest.raises(UserError, match="cannot listen there"):
            asyncio.run(Server(app, engine, bound).startup([bound]))
