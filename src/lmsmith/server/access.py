"""Who may ask: everybody, whoever has the server's token, or people who were let in by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers

from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Person
from lmsmith.server.session import Sessions, session_cookie
from lmsmith.server.visitors import Visitor

LOOK_AGAIN = 1.0
"""Seconds after which the first user that is added closes a server that was open to all."""


class Access:
    """Knows visitors by their tokens and cookies.

    Args:
        token: the server's, which is its owner's; may be empty.
        store: has the people who were let in; None if nothing is kept.
        clock: seconds, to know when to look again.
    """

    def __init__(
        self, token: str, store: Store | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sessions = Sessions(token)
        self._people = People(store) if store is not None else None
        self._clock, self._looked = clock, -LOOK_AGAIN
        self._has_people = False

    async def is_closed(self) -> bool:
        """Whether a token is asked for. What was closed once stays so until the server ends."""
        if self._sessions.needs_token or self._has_people or self._people is None:
            return self._sessions.needs_token or self._has_people
        if self._clock() - self._looked >= LOOK_AGAIN:
            self._looked = self._clock()
            self._has_people = await asyncio.to_thread(self._people.anybody)
        return self._has_people

    async def who(self, headers: Headers) -> Visitor | None:
        """Who asks; None if they have no right to."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        cookie = session_cookie(headers.get("cookie", ""))
        if not await self.is_closed():
            return Visitor()
        if scheme.lower() == "bearer":
            return await self._by_token(given.strip())
        if cookie and self._sessions.needs_token and self._sessions.is_open(cookie):
            return Visitor()
        if cookie and self._people is not None:
            return _visitor(await asyncio.to_thread(self._people.by_session, cookie))
        return None

    async def sign_in(self, token: str) -> tuple[str, Visitor] | None:
        """What a cookie is to hold, and whose it is; None if nobody has this token."""
        visitor = await self._by_token(token)
        if visitor is None:
            return None
        if not visitor.id or self._people is None:
            return self._sessions.begin(), visitor
        return await asyncio.to_thread(self._people.open_session, visitor.id), visitor

    async def sign_out(self, headers: Headers) -> None:
        """End the session of a cookie, if it is a person's; the owner's ends in the browser."""
        cookie = session_cookie(headers.get("cookie", ""))
        if cookie and self._people is not None:
            await asyncio.to_thread(self._people.close_session, cookie)

    async def _by_token(self, token: str) -> Visitor | None:
        if self._sessions.knows(token) and (token or not await self.is_closed()):
            return Visitor()
        if self._people is None:
            return None
        return _visitor(await asyncio.to_thread(self._people.by_token, token))


def _visitor(person: Person | None) -> Visitor | None:
    return Visitor(person.name, person.role, person.id) if person is not None else None
