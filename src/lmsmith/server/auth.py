"""Authentication: the visitor of a request, by token or session cookie, and their role."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.exc import DatabaseError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from lmsmith.core.errors import UserError
from lmsmith.feedback.database import failed
from lmsmith.feedback.people import OWNER, SESSION_DAYS, People, PersonStore
from lmsmith.feedback.sqlite_file import REMOVED
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import ROLES, Person
from lmsmith.server.errors import ApiError, bad_request, unavailable
from lmsmith.server.stream import json_response
from lmsmith.server.token_strength import weakness
from lmsmith.server.turns import Turns, in_database_thread
from lmsmith.server.wrong_tokens import WrongTokens

log = logging.getLogger("lmsmith.server")
router = APIRouter(prefix="/api/session")
Result = TypeVar("Result")

COOKIE = "lmsmith_session"

RECHECK_SECONDS = 1.0
"""The first user that is added closes an open server after at most this time."""

VISITOR = "lmsmith.visitor"
"""Key of the `Visitor` in a request's scope; set by the guard alone."""


@dataclass(frozen=True)
class Visitor:
    """Sender of a request: a named user, or the server's owner, whose ``id`` is empty."""

    name: str = OWNER
    role: str = "admin"
    id: str = ""

    def person_id(self, store: PersonStore) -> str:
        """The person's id in the database, to which the owner is added if new."""
        return self.id or store.person(self.name, self.role).id

    @property
    def cache_salt(self) -> str:
        """Requests of one salt may reuse each other's prompts in the prefix cache.

        Every named user has their own; all who use the server's token, or none, share one.
        """
        return self.id


def visitor_of(request: Request) -> Visitor:
    found = request.scope[VISITOR]
    assert isinstance(found, Visitor)
    return found


def address_of(scope: Scope) -> str:
    """The address that a request comes from, which may be a proxy's."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def require_role(request: Request, roles: tuple[str, ...]) -> Visitor:
    """The request's visitor; raises ApiError (403) for another role."""
    visitor = visitor_of(request)
    if visitor.role not in roles:
        problem = f"this is for the role {' or '.join(roles)}; you are {visitor.role}"
        raise ApiError(403, problem, "permission_error", code="role_not_allowed")
    return visitor


async def in_database(work: Callable[..., Result], *given: object) -> Result:
    """Call a function that uses the database in a thread; raises ApiError (503) if the database is
    unreachable, damaged, or locked for too long."""
    try:
        return await in_database_thread(partial(work, *given))
    except DatabaseError as error:
        if not failed(error):
            raise
        log.error("the database does not answer: %s", error.orig)
        said = str(error.orig)
        reason = next((shown for words, shown in _REASONS.items() if words in said), "")
        problem = reason or "the database does not answer now; try again"
        raise unavailable(problem, "database_unavailable", seconds=2) from error


_DAMAGED = "the database file is damaged; nothing was saved; put back a copy of it"
_REASONS = {
    REMOVED: f"{REMOVED}: nothing was saved; put it back, or restart the server",
    "unable to open": f"{REMOVED}, or cannot be opened; put it back, or restart the server",
    "readonly": "the database can be read but not written; nothing was saved",
    "is full": "the database's disk is full; nothing was saved",
    "malformed": _DAMAGED,
    "not a database": _DAMAGED,
    "disk I/O error": "the database's disk fails; nothing was saved",
}
"""What a person is told, by words of SQLite; the log has the rest."""


async def with_store(
    request: Request, work: Callable[[Store, str], Result], roles: tuple[str, ...] = ROLES
) -> Result:
    """Call ``work`` with the store and the visitor's id.

    Raises:
        ApiError: 403 for another role, 404 for what is not this person's, 400 for other errors of
            ``work``, 503 if the database does not answer.
    """
    store: Store = request.app.state.store
    turns: Turns = request.app.state.in_database
    visitor = require_role(request, roles)
    try:
        async with turns.of(visitor.id):
            return await in_database(lambda: work(store, visitor.person_id(store)))
    except NotThere as error:
        raise ApiError(404, error.problem, code="not_found") from error
    except UserError as error:
        raise bad_request(error) from error


def session_cookie(header: str) -> str:
    """The session in a Cookie header; empty if there is none."""
    # Not by http.cookies, whose time for a quoted value grows with the square of its length.
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:  # the first is that of the longest path (RFC 6265, section 5.4)
            return value
    return ""


class Authenticator:
    """Finds a request's visitor by token or cookie.

    Args:
        token: the server's, which is its owner's; may be empty.
        store: has the named users and all sessions.
    """

    def __init__(self, token: str, store: Store) -> None:
        self._token, self._people = token, People(store)
        self._clock, self._checked = time.monotonic, -RECHECK_SECONDS
        self._wrong, self._is_random = WrongTokens(), not token or not weakness(token)
        self._is_closed = bool(token) or self._people.anybody()

    async def is_closed(self) -> bool:
        """Whether a token is needed. A closed server stays closed until it ends."""
        if not self._is_closed and self._clock() - self._checked >= RECHECK_SECONDS:
            self._checked = self._clock()
            self._is_closed = await in_database(self._people.anybody)
        return self._is_closed

    async def authenticate(self, headers: Headers, address: str) -> Visitor | None:
        """The visitor; None if they may not use the server.

        Raises:
            ApiError: too many wrong tokens came from the address (429).
        """
        if not await self.is_closed():
            return Visitor()
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            token = given.strip()
            return await self._check(address, token)
        if not (cookie := session_cookie(headers.get("cookie", ""))):
            return None
        return await self._wrong.look_up(address, lambda: in_database(self._by_session, cookie))

    async def sign_in(self, token: str, address: str) -> tuple[str, Visitor] | None:
        """A session's cookie, empty if none is needed, and visitor; None if the token is wrong.

        Raises:
            ApiError: as `authenticate`.
        """
        visitor = await self._check(address, token)
        if visitor is None:
            return None
        if not await self.is_closed():
            return "", visitor
        return await in_database(self._open_session, visitor), visitor

    async def sign_out(self, headers: Headers, address: str) -> None:
        """End the cookie's session for everybody who has a copy of it."""
        if cookie := session_cookie(headers.get("cookie", "")):
            close = partial(in_database, self._people.close_session, cookie, self._token)
            await self._wrong.look_up(address, close)

    def is_token(self, given: str) -> bool:
        """Whether this is the server's token, compared in constant time."""
        return hmac.compare_digest(given.encode(errors="surrogatepass"), self._token.encode())

    async def _check(self, address: str, token: str) -> Visitor | None:
        async def random_one() -> Visitor | None:
            if self._is_random and await self._is_owners(token):
                return Visitor()
            if "." not in token:  # nobody's, and no reason to ask the database
                return None
            return _visitor(await in_database(self._people.by_token, token))

        def guessable_one() -> Visitor | None:
            return Visitor() if not self._is_random and self.is_token(token) else None

        return await self._wrong.check(address, token, random_one, guessable_one)

    async def _is_owners(self, token: str) -> bool:
        return self.is_token(token) and (bool(token) or not await self.is_closed())

    def _open_session(self, visitor: Visitor) -> str:
        """The owner's session is bound to the server's token: another token ends it."""
        token = "" if visitor.id else self._token
        return self._people.open_session(visitor.person_id(self._people.store), token)

    def _by_session(self, cookie: str) -> Visitor | None:
        if self._token and self._people.by_session(cookie, self._token):
            return Visitor()
        return _visitor(self._people.by_session(cookie))


def _visitor(person: Person | None) -> Visitor | None:
    return Visitor(person.name, person.role, person.id) if person is not None else None


class TokenBody(BaseModel):
    token: Annotated[str, Field(max_length=1000)]


async def _visitor_or_none(request: Request) -> Visitor | None:
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.authenticate(request.headers, address_of(request.scope))


@router.get("")
async def show(request: Request) -> Response:
    """Whether this browser is signed in, as whom, and whether it must be."""
    authenticator: Authenticator = request.app.state.authenticator
    return await _shown(authenticator, await _visitor_or_none(request))


@router.post("")
async def sign_in(request: Request, body: TokenBody) -> Response:
    """Exchange a token, the server's or a user's, for a cookie that scripts cannot read."""
    authenticator: Authenticator = request.app.state.authenticator
    found = await authenticator.sign_in(body.token, address_of(request.scope))
    if found is None:
        problem = "that is no token of this server"
        raise ApiError(401, problem, "authentication_error", code="invalid_api_key")
    cookie, visitor = found
    response = await _shown(authenticator, visitor)
    if cookie:
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=SESSION_DAYS * 24 * 3600,
            httponly=True,
            samesite="strict",
            path=_cookie_path(request),
            secure=_is_by_tls(request),
        )
    return response


@router.delete("")
async def sign_out(request: Request) -> Response:
    """End the session, and delete its cookie."""
    authenticator: Authenticator = request.app.state.authenticator
    await authenticator.sign_out(request.headers, address_of(request.scope))
    visitor = None if await authenticator.is_closed() else Visitor()
    response = await _shown(authenticator, visitor)
    response.delete_cookie(COOKIE, path=_cookie_path(request), httponly=True, samesite="strict")
    return response


def _cookie_path(request: Request) -> str:
    return f"{request.app.state.root_path}/"


def _is_by_tls(request: Request) -> bool:
    """Whether the browser speaks TLS, as a trusted proxy or the page's own address says."""
    origin = request.headers.get("origin", "")  # the guard has refused those of other pages
    return request.url.scheme == "https" or origin.lower().startswith("https:")


async def _shown(authenticator: Authenticator, visitor: Visitor | None) -> Response:
    found = {"signed_in": visitor is not None, "needs_token": await authenticator.is_closed()}
    who = {} if visitor is None else {"name": visitor.name, "role": visitor.role}
    return json_response(found | who, {"Cache-Control": "no-store"})
