"""Behind a proxy: the sub-path of the page and the API, and whose word about the client counts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lmsmith.core.errors import UserError

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")

TAKEN = {"api", "assets", "c", "detokenize", "health", "label", "metrics", "models", "ready"}
TAKEN |= {"tokenize", "tokenizer_info", "v1"}
"""First parts of the server's own paths: below them a request with the sub-path and one without it
would look the same."""


def checked_root_path(given: str) -> str:
    """A sub-path without a slash at its end; empty for the root.

    Raises:
        UserError: it is no path, or one of the server's own.
    """
    path = given.rstrip("/")
    if not path:
        return ""
    if not _ROOT_PATH.fullmatch(path):
        raise UserError(
            f"--root-path {given}: this is no path",
            "give one as it stands in the address, of letters, digits, - _ . ~: --root-path /chat",
        )
    if path.split("/")[1] in TAKEN:
        raise UserError(
            f"--root-path {given}: the server has paths of its own there", "choose another one"
        )
    return path


def checked_proxies(given: Sequence[str]) -> tuple[str, ...]:
    """Addresses and networks of proxies, in their usual form.

    Raises:
        UserError: one is neither.
    """
    found = []
    for each in given:
        try:
            network = ipaddress.ip_network(each.strip("[]"))
        except ValueError as error:
            raise UserError(
                f"--trusted-proxy {each}: {error}",
                "give the proxy's address or network: 127.0.0.1, 10.1.0.0/16",
            ) from error
        found.append(str(network[0] if network.num_addresses == 1 else network))
    return tuple(found)


def is_proxy(address: str, proxies: Sequence[str]) -> bool:
    """Whether an address is one of those that `checked_proxies` gave."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(each) for each in proxies)


class SubPath:
    """Serves an application below a path: requests come with it, or a proxy has removed it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] + "/").startswith(self._root + "/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root) or "/"}
        await self._app(scope, receive, send)


def behind_proxy(app: ASGIApp, root_path: str, proxies: Sequence[str]) -> ASGIApp:
    """An application that knows its clients behind proxies, below a path.

    Args:
        root_path: of `checked_root_path`.
        proxies: of `checked_proxies`. What these say by ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` is taken as the client's address and scheme; the rest may be
            written by anybody, and is not read.
    """
    if root_path:
        app = SubPath(app, root_path)
    if proxies:
        app = cast(ASGIApp, ProxyHeadersMiddleware(cast(object, app), list(proxies)))  # type: ignore[arg-type]
    return app
