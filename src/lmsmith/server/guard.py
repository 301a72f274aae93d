"""Checks before a request is read: host, origin, token, size, type."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmsmith.core.text import encodable_json
from lmsmith.server.auth import VISITOR, Authenticator, Visitor, address_of
from lmsmith.server.connections import ConnectionLimits
from lmsmith.server.errors import ApiError
from lmsmith.server.wrong_tokens import is_loopback

LOOPBACK = ("127.0.0.1", "localhost", "::1")

OPEN_BODY_BYTES = 4_096
"""Most bytes of a body for routes that everybody may use, such as signing in."""

HELD_BODIES = 64
"""Longest bodies that are held at once; a named person may have a quarter of them."""

MAX_VALUES, MAX_GROUPS = 600_000, 200_000
"""Commas and opening brackets of a body, at most: reading them holds everybody up."""

_ORIGIN = re.compile(r"(https?)://([^/@?#\s]+)")
_PORTS = {"http": "80", "https": "443"}

_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::(\d*))?", re.ASCII)
_ONCE = ("host", "origin", "authorization", "cookie", "content-type")
"""Headers that decide about a request: of two, a proxy might go by the other one."""

_JSON = re.compile(r"\s*application/([\w.-]+\+)?json\s*(;|$)", re.IGNORECASE)

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
}
_POLICY = {b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'"}
"""For responses that have none of their own."""


class Guard:
    """Refuses requests that the application must not see.

    Args:
        app: the guarded application.
        authenticator: finds the visitor.
        is_open: whether a path is open to everybody.
        hosts: names by which the server may be called, which stops pages elsewhere whose own name
            points here. Empty allows all, which needs a token.
        body_bytes: longest body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        is_open: Callable[[str], bool],
        hosts: Sequence[str],
        body_bytes: int,
    ) -> None:
        self._app, self._authenticator, self._body_bytes = app, authenticator, body_bytes
        self._is_open = is_open
        self._hosts = {host.lower().removesuffix(".") for host in hosts}
        self._load = Load(HELD_BODIES * body_bytes, ConnectionLimits.of_system().total // 2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "HEAD":  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", [])
                own = {name.lower() for name, _ in given}
                more = _HEADERS | {k: v for k, v in _POLICY.items() if k not in own}
                message = {**message, "headers": [*given, *more.items()]}
            await send(message)

        is_open = self._is_open(scope["path"])
        most = min(self._body_bytes, OPEN_BODY_BYTES) if is_open else self._body_bytes
        try:
            self._check(headers, scope["scheme"], most)
            person = ""
            if not is_open:
                visitor = scope[VISITOR] = await self._visitor(headers, address_of(scope))
                person = visitor.id
            _check_form(headers)
            with self._load.request_of(person) as held:
                await self._app(scope, self._whole_body(receive, held, most), send_safely)
        except ApiError as error:
            await error.response()(scope, receive, send_safely)

    def _check(self, headers: Headers, scheme: str, most: int) -> None:
        if twice := [name for name in _ONCE if len(headers.getlist(name)) > 1]:
            raise ApiError(400, f"the header {twice[0]} is there more than once; send it once")
        if self._hosts and _host_name(headers.get("host", "")) not in self._hosts:
            name = headers.get("host", "")
            problem = f"no server of the name {name!r} is here; allow it by --allow-host"
            raise ApiError(421, problem, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers.get("host", ""), scheme):
            problem = "requests from other origins are refused"
            if origin.startswith("https:"):
                problem += "; name a proxy that has a certificate by --allow-host"
            raise ApiError(403, problem, "permission_error", code="origin_not_allowed")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > most:
            raise _too_large(most)

    async def _visitor(self, headers: Headers, address: str) -> Visitor:
        found = await self._authenticator.authenticate(headers, address)
        if found is None:
            raise ApiError(
                401,
                "give the server's token or a user's, as Authorization: Bearer TOKEN; "
                "lmsmith users token NAME makes a new one",
                "authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def _is_own(self, origin: str, host: str, scheme: str) -> bool:
        """Whether the page that sends it is this server's: scheme, name and port are equal.

        A proxy before a name that was allowed may have a certificate.
        """
        given, (name, port) = _ORIGIN.fullmatch(origin.lower()), _name_and_port(host)
        if given is None or _name_and_port(given[2])[0] != name:
            return False
        behind_proxy = name in self._hosts and not is_loopback(name)
        if given[1] != scheme and not (behind_proxy and given[1] == "https"):
            return False
        usual = _PORTS[given[1]]
        return (_name_and_port(given[2])[1] or usual) == (port or usual)

    def _whole_body(self, receive: Receive, held: Callable[[int], None], most: int) -> Receive:
        """Gives the whole body, without the lone surrogates that JSON may escape (``\\ud83d``).

        Raises:
            ApiError: 413, also for a body that does not tell its length; 429 or 503 if too many
                bodies are held.
        """
        whole = False

        async def received() -> Message:
            nonlocal whole
            body, more_body = bytearray(), True
            while more_body:
                message = await receive()
                if whole or message["type"] != "http.request":
                    return message
                body += message.get("body", b"")
                if len(body) > most:
                    raise _too_large(most)
                held(len(message.get("body", b"")))
                more_body = message.get("more_body", False)
            whole = True
            groups = body.count(b"[") + body.count(b"{")
            if body.count(b",") > MAX_VALUES or groups > MAX_GROUPS:
                problem = f"the body may have {MAX_VALUES:,} values at most, and {MAX_GROUPS:,} "
                problem += "lists and objects"
                raise ApiError(413, problem, code="body_too_large")
            return {"type": "http.request", "body": _encodable(bytes(body)), "more_body": False}

        return received


def _too_large(most: int) -> ApiError:
    problem = f"the body may have {most:,} bytes at most"
    return ApiError(413, problem, code="body_too_large", headers={"Connection": "close"})


def _encodable(body: bytes) -> bytes:
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        return body
    cleaned = encodable_json(text)
    return body if cleaned == text else cleaned.encode()


def _check_form(headers: Headers) -> None:
    """Raises ApiError (415) for a body that is compressed or, like a form's, not JSON."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    packed = headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        problem = f"Content-Encoding {packed!r}: send the body as it is, not compressed"
        raise ApiError(
            415, problem, code="unsupported_encoding", headers={"Accept-Encoding": "identity"}
        )
    kind = headers.get("content-type", "")
    if not _JSON.match(kind):
        found = f"Content-Type is {kind!r}" if kind else "there is no Content-Type"
        problem = f"{found}; send JSON, and with it the header Content-Type: application/json"
        raise ApiError(415, problem, code="unsupported_media_type")


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    return _name_and_port(host)[0]


def _name_and_port(host: str) -> tuple[str, str]:
    """Both parts of a Host header, the name without a dot at its end; the port may be empty."""
    if (found := _HOST.fullmatch(host)) is None:
        return "", ""  # nobody's
    name, port = found[1] or found[2] or "", found[3] or ""
    return name.lower().removesuffix("."), port.lstrip("0")


class Load:
    """What running requests hold: bodies in memory, and each person's number of requests."""

    def __init__(self, body_bytes: int, of_person: int) -> None:
        self._most_bytes, self._most_requests = body_bytes, max(4, of_person)
        self._requests, self._bytes = Counter[str](), Counter[str]()

    @contextlib.contextmanager
    def request_of(self, person: str) -> Iterator[Callable[[int], None]]:
        """A request while it runs; yields a function that counts bytes of its body.

        Args:
            person: empty for the owner, and for nobody in particular.

        Raises:
            ApiError: the person has too many requests (429), or bodies fill the memory that is
                theirs (429) or everybody's (503).
        """
        if person and self._requests[person] >= self._most_requests:
            raise _too_many(429, f"{self._requests[person]} of your requests run already")
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            held += count
            self._bytes[person] += count
            if person and self._bytes[person] > self._most_bytes // 4:
                raise _too_many(429, "your requests that run are too large together")
            if self._bytes.total() > self._most_bytes:
                raise _too_many(503, "requests that run are too large together")

        self._requests[person] += 1
        try:
            yield hold
        finally:
            self._requests[person] -= 1
            self._bytes[person] -= held
            if not self._requests[person]:
                del self._requests[person], self._bytes[person]


def _too_many(status: int, problem: str) -> ApiError:
    kind = "rate_limit_error" if status == 429 else "server_error"
    more = {"Retry-After": "2", "Connection": "close"}
    return ApiError(
        status, f"{problem}; try again later", kind, code="too_many_requests", headers=more
    )
