"""What is done with the database for a request: as whom, in a thread, errors in the API's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import OperationalError
from starlette.requests import Request

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import ROLES
from lmsmith.server.errors import ApiError, refused
from lmsmith.server.visitors import Visitor, visitor_of

log = logging.getLogger("lmsmith.server")
Result = TypeVar("Result")


async def in_database(work: Callable[..., Result], *given: object) -> Result:
    """What a function of the database gives, which is called in a thread.

    Raises:
        ApiError: 503, the database is away, or held by something else for too long.
    """
    try:
        return await asyncio.to_thread(work, *given)
    except OperationalError as error:
        log.error("the database does not answer: %s", error.orig)
        problem = "the database does not answer now; try again"
        headers = {"Retry-After": "2"}
        raise ApiError(
            503, problem, "server_error", code="database_unavailable", headers=headers
        ) from error


def for_roles(request: Request, roles: tuple[str, ...]) -> Visitor:
    """Who asks, if it is one of these roles.

    Raises:
        ApiError: 403 for another role.
    """
    visitor = visitor_of(request)
    if visitor.role not in roles:
        problem = f"this is for the role {' or '.join(roles)}; you are {visitor.role}"
        raise ApiError(403, problem, "permission_error", code="role_not_allowed")
    return visitor


async def kept(
    request: Request, work: Callable[[Store, str], Result], roles: tuple[str, ...] = ROLES
) -> Result:
    """Do something with the database as the person who asks.

    Args:
        request: whose.
        work: gets the database and the person's id.
        roles: who may do it.

    Raises:
        ApiError: 403 for another role, 404 without a database or for what is not this person's,
            400 for what cannot be done, 503 if the database does not answer.
    """
    store: Store | None = request.app.state.store
    if store is None:
        raise ApiError(404, "nothing is kept here; start the server with --database FILE")
    visitor = for_roles(request, roles)
    try:
        return await in_database(lambda: work(store, visitor.person(store)))
    except NotThere as error:
        raise ApiError(404, error.problem, code="not_found") from error
    except UserError as error:
        raise refused(error) from error
