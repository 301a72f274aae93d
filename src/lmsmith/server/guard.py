"""Checks before a request is read: host, origin, token, size, type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmsmith.core.text import encodable_json
from lmsmith.server.auth import VISITOR, Authenticator, Visitor
from lmsmith.server.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

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
        self._hosts = {host.lower() for host in hosts}

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

        try:
            self._check(headers)
            if not self._is_open(scope["path"]):
                scope[VISITOR] = await self._visitor(headers)
            _check_form(headers)
            await self._app(scope, self._whole_body(receive), send_safely)
        except ApiError as error:
            await error.response()(scope, receive, send_safely)

    def _check(self, headers: Headers) -> None:
        if self._hosts and _host_name(headers.get("host", "")) not in self._hosts:
            name = headers.get("host", "")
            problem = f"no server of the name {name!r} is here; allow it by --allow-host"
            raise ApiError(421, problem, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers.get("host", "")):
            problem = "requests from other origins are refused"
            raise ApiError(403, problem, "permission_error", code="origin_not_allowed")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._body_bytes:
            raise self._too_large()

    async def _visitor(self, headers: Headers) -> Visitor:
        found = await self._authenticator.authenticate(headers)
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

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether the page that sends it is this server's."""
        name = _host_name(origin.partition("://")[2])
        return name == _host_name(host) or name in self._hosts

    def _whole_body(self, receive: Receive) -> Receive:
        """Gives the whole body, without the lone surrogates that JSON may escape (``\\ud83d``).

        Raises:
            ApiError: 413, also for a body that does not tell its length.
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
                if len(body) > self._body_bytes:
                    raise self._too_large()
                more_body = message.get("more_body", False)
            whole = True
            return {"type": "http.request", "body": _encodable(bytes(body)), "more_body": False}

        return received

    def _too_large(self) -> ApiError:
        problem = f"the body may have {self._body_bytes:,} bytes at most"
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
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
