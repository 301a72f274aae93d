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
        is_open=pages.is_page,
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
    first: dict[str, Any] = dict(error.errors()[0])
    place = [part for part in first.get("loc", ()) if part not in ("body", "query")]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    param = param.removeprefix(".")
    problem = f"{param}: {first.get('msg', '')}" if param else str(first.get("msg", "bad request"))
    return ApiError(400, problem, param=param or None, code="invalid_value").response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised while the body was read
        return error.__cause__.response()
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
