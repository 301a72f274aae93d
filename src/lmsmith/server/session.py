"""Signing in from a browser: the server's token once, then a cookie that no script can read.

A cookie is the time at which it ends and a signature of that by a key made from the token: it needs
no memory, outlives a restart, and ends at once for everybody when the token is changed.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

COOKIE = "lmsmith_session"
SECONDS = 30 * 24 * 3600
"""How long a session lasts."""


class Sessions:
    """Makes and checks cookies of one server.

    Args:
        token: the server's; whoever knows it may sign in. Empty: everybody is signed in.
        clock: seconds since 1970.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self.needs_token = bool(token)
        self._token, self._clock = token.encode(), clock
        self._key = hashlib.sha256(b"lmsmith session\0" + self._token).digest()

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes as long whatever is wrong with it."""
        return hmac.compare_digest(token.encode(errors="surrogatepass"), self._token)

    def begin(self) -> str:
        """The value of a new cookie."""
        end = str(int(self._clock()) + SECONDS)
        return f"{end}.{self._signature(end)}"

    def is_open(self, cookie: str) -> bool:
        """Whether a cookie is one of ours and has not ended."""
        end, _, signature = cookie.partition(".")
        right = hmac.compare_digest(signature.encode(), self._signature(end).encode())
        return right and end.isascii() and end.isdigit() and int(end) > self._clock()

    def _signature(self, end: str) -> str:
        return hmac.new(self._key, end.encode(), hashlib.sha256).hexdigest()


def session_cookie(header: str) -> str:
    """The session in a Cookie header; empty if there is none."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
