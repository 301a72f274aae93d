"""``/api/session``: a browser signs in with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.server.access import Access
from lmsmith.server.errors import ApiError
from lmsmith.server.responses import json_response
from lmsmith.server.session import COOKIE, SECONDS
from lmsmith.server.visitors import Visitor

router = APIRouter(prefix="/api/session")


class TokenBody(BaseModel):
    token: Annotated[str, Field(max_length=1000)]


async def _shown(access: Access, visitor: Visitor | None) -> Response:
    who = {} if visitor is None else {"name": visitor.name, "role": visitor.role}
    found = {"signed_in": visitor is not None, "needs_token": await access.is_closed(), **who}
    return json_response(found, {"Cache-Control": "no-store"})


@router.get("")
async def show(request: Request) -> Response:
    """Whether this browser is signed in, as whom, and whether it must be."""
    access: Access = request.app.state.access
    return await _shown(access, await access.who(request.headers))


@router.post("")
async def sign_in(request: Request, body: TokenBody) -> Response:
    """Exchange a token, the server's or a user's, for a cookie that no script can read."""
    access: Access = request.app.state.access
    found = await access.sign_in(body.token)
    if found is None:
        problem = "that is no token of this server"
        raise ApiError(401, problem, "authentication_error", code="invalid_api_key")
    cookie, visitor = found
    response = await _shown(access, visitor)
    if cookie:
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@router.delete("")
async def sign_out(request: Request) -> Response:
    """Take the cookie away; its session is over, whoever has a copy."""
    access: Access = request.app.state.access
    await access.sign_out(request.headers)
    response = await _shown(access, None if await access.is_closed() else Visitor())
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
