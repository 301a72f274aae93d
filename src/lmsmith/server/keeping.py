"""What is done with the database for a request: as whom, in a thread, errors in the API's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import ROLES
from lmsmith.server.errors import ApiError, refused
from lmsmith.server.visitors import visitor_of

Result = TypeVar("Result")


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
            400 for what cannot be done.
    """
    store: Store | None = request.app.state.store
    if store is None:
        raise ApiError(404, "nothing is kept here; start the server with --database FILE")
    visitor = visitor_of(request)
    if visitor.role not in roles:
        problem = f"this is for the role {' or '.join(roles)}; you are {visitor.role}"
        raise ApiError(403, problem, "permission_error", code="role_not_allowed")
    try:
        return await asyncio.to_thread(lambda: work(store, visitor.person(store)))
    except NotThere as error:
        raise ApiError(404, error.problem, code="not_found") from error
    except UserError as error:
        raise refused(error) from error
