"""Signing in from a browser with the server's token: a cookie that no script can read.

Where there is a database, sessions are in it (`lmsmith.feedback.people`), outlive a restart, and
end when somebody signs out. Without one they are in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

COOKIE = "lmsmith_session"
SECONDS = 30 * 24 * 3600
"""How long a session lasts."""


class Sessions:
    """Knows the server's token, and who signed in with it.

    Args:
        token: the server's; whoever knows it may sign in. Empty: everybody is signed in.
        clock: seconds since 1970.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self.token, self._clock = token, clock
        self._ends: dict[bytes, float] = {}

    @property
    def needs_token(self) -> bool:
        return bool(self.token)

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes as long whatever is wrong with it."""
        return hmac.compare_digest(token.encode(errors="surrogatepass"), self.token.encode())

    def begin(self) -> str:
        """The value of a new cookie, remembered until it ends."""
        now, cookie = self._clock(), secrets.token_urlsafe(32)
        self._ends = {name: end for name, end in self._ends.items() if end > now}
        self._ends[_name(cookie)] = now + SECONDS
        return cookie

    def is_open(self, cookie: str) -> bool:
        """Whether a cookie is one of ours and has not ended."""
        return self._ends.get(_name(cookie), 0.0) > self._clock()

    def end(self, cookie: str) -> None:
        """It opens nothing from now on, whoever has it."""
        self._ends.pop(_name(cookie), None)


def _name(cookie: str) -> bytes:
    """A session is found by a hash, which tells by no time how much of a guess is right."""
    return hashlib.sha256(cookie.encode(errors="surrogatepass")).digest()


def session_cookie(header: str) -> str:
    """The session in a Cookie header; empty if there is none."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
