"""The application: routes, errors in the API's shape, and what guards them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from lmsmith.feedback.store import Store
from lmsmith.server import (
    attention,
    basics,
    bringing,
    chat,
    completions,
    judging,
    labelling,
    pages,
    signing_in,
    talking,
    tasks,
    tokens,
)
from lmsmith.server.access import Access
from lmsmith.server.answering import Serving
from lmsmith.server.errors import ApiError, internal
from lmsmith.server.guard import LOOPBACK, Guard

log = logging.getLogger("lmsmith.server")


def create_app(
    serving: Serving,
    *,
    token: str = "",
    hosts: Sequence[str] = LOOPBACK,
    store: Store | None = None,
) -> ASGIApp:
    """An ASGI application.

    Args:
        serving: the models; their thread is started and stopped with the application.
        token: demanded of every request if it is not empty.
        hosts: names by which the server may be called; empty allows all.
        store: keeps conversations and judgements; without it there is no ``/api``.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.worker.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await app.state.talks.finish()
            await asyncio.to_thread(serving.worker.stop)

    app = FastAPI(
        title="lmsmith",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address made of the Host header
    )
    app.state.serving, app.state.store = serving, store
    app.state.access = Access(token, store)
    app.state.talks = talking.Talks(serving.limits.unread_seconds)
    for part in (
        basics, bringing, chat, completions, tasks, tokens, judging, talking, attention, labelling,
        pages, signing_in,
    ):  # fmt: skip
        app.include_router(part.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_body)
    app.add_exception_handler(HTTPException, _http_error)
    guarded = Guard(
        _Crashes(app, serving),
        access=app.state.access,
        is_open=pages.is_open,
        hosts=hosts,
        body_bytes=serving.limits.body_bytes,
    )
    return guarded


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _bad_body(_: Request, error: Exception) -> Response:
    """A field that is wrong: 400, as OpenAI's API has it, not 422."""
    assert isinstance(error, RequestValidationError)
    found: list[dict[str, Any]] = [dict(each) for each in error.errors()]
    first = found[0]
    kind, place = first.get("type"), list(first.get("loc", ()))
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        reason = reason.removesuffix(" at")  # Python's own words: "Invalid control character at"
        return _no_body(f"the body is not JSON: {reason} at character {place[-1]}")
    if place == ["body"] and kind in _NO_OBJECT:
        return _no_body(_NO_OBJECT[kind])
    if any(map(_is_branch, place)):  # of several types none fits: what each of them expects
        found = [each for each in found if each["loc"][:2] == first["loc"][:2]]
    else:
        found = [first]
    place = [part for part in place if part not in ("body", "query") and not _is_branch(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    param = param.removeprefix(".")
    said = " or ".join(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found))
    problem = f"{param}: {said}" if param else said
    return ApiError(400, problem, param=param or None, code="invalid_value").response()


_NO_OBJECT = {
    "missing": "the body is empty; send a JSON object",
    "model_attributes_type": "the body must be a JSON object, {…}",
}


def _no_body(problem: str) -> Response:
    return ApiError(400, problem, code="invalid_body").response()


def _is_branch(part: object) -> bool:
    """Whether a part of a place is pydantic's name for one type of several, and not a field."""
    return isinstance(part, str) and (part == "str" or part.startswith(("list[", "function-")))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised while the body was read
        return error.__cause__.response()
    if isinstance(error.__cause__, UnicodeDecodeError):
        return _no_body("the body is not UTF-8; save or send it as UTF-8")
    if isinstance(error.__cause__, RecursionError):
        return _no_body("the body cannot be read: lists and objects are nested too deeply in it")
    if isinstance(error.__cause__, ValueError):
        return _no_body(f"the body cannot be read: {error.__cause__}")
    problem = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, problem, headers=error.headers or {}).response()


class _Crashes:
    """Mistakes of ours become a 500 in the API's shape, and a line in the log."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def counted(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self._serving.metrics.responses.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except ApiError:
            raise
        except Exception:
            name = f"req-{secrets.token_hex(8)}"
            log.exception("request %s (%s) failed", name, scope.get("path"))
            if not begun:
                await internal(name).response()(scope, receive, counted)
