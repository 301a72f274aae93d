"""Who may ask: everybody, whoever has the server's token, or people who were let in by name."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers

from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Person
from lmsmith.server.keeping import in_database
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
        # Before the first request, which others do not wait for.
        self._has_people = self._people is not None and self._people.anybody()

    async def is_closed(self) -> bool:
        """Whether a token is asked for. What was closed once stays so until the server ends."""
        if self._sessions.needs_token or self._has_people or self._people is None:
            return self._sessions.needs_token or self._has_people
        if self._clock() - self._looked >= LOOK_AGAIN:
            self._looked = self._clock()
            self._has_people = await in_database(self._people.anybody)
        return self._has_people

    async def who(self, headers: Headers) -> Visitor | None:
        """Who asks; None if they have no right to."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        cookie = session_cookie(headers.get("cookie", ""))
        if not await self.is_closed():
            return Visitor()
        if scheme.lower() == "bearer":
            return await self._by_token(given.strip())
        if not cookie:
            return None
        if self._people is None:
            return Visitor() if self._sessions.is_open(cookie) else None
        return await in_database(self._by_session, self._people, cookie)

    async def sign_in(self, token: str) -> tuple[str, Visitor] | None:
        """What a cookie is to hold, and whose it is; None if nobody has this token.

        The cookie is empty where nobody needs one.
        """
        visitor = await self._by_token(token)
        if visitor is None:
            return None
        if not await self.is_closed():
            return "", visitor
        if self._people is None:
            return self._sessions.begin(), visitor
        return await in_database(self._open_session, self._people, visitor), visitor

    async def sign_out(self, headers: Headers) -> None:
        """End the session of a cookie, whoever has a copy of it."""
        cookie = session_cookie(headers.get("cookie", ""))
        self._sessions.end(cookie)
        if cookie and self._people is not None:
            await in_database(self._people.close_session, cookie, self._sessions.token)

    async def _by_token(self, token: str) -> Visitor | None:
        if self._sessions.knows(token) and (token or not await self.is_closed()):
            return Visitor()
        if self._people is None:
            return None
        return _visitor(await in_database(self._people.by_token, token))

    def _open_session(self, people: People, visitor: Visitor) -> str:
        """The owner's is bound to the server's token: another token ends it."""
        if visitor.id:
            return people.open_session(visitor.id)
        return people.open_session(visitor.person(people.store), self._sessions.token)

    def _by_session(self, people: People, cookie: str) -> Visitor | None:
        if self._sessions.needs_token and people.by_session(cookie, self._sessions.token):
            return Visitor()
        return _visitor(people.by_session(cookie))


def _visitor(person: Person | None) -> Visitor | None:
    return Visitor(person.name, person.role, person.id) if person is not None else None
