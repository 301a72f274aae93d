"""The application: its routes behind the guard, and how it tells a supervisor that it is well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from lmsmith.feedback.store import Store
from lmsmith.server import auth, pages
from lmsmith.server.api import answers, attention, conversations, imports, labelling
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError, add_error_handlers, internal
from lmsmith.server.guard import LOOPBACK, Guard
from lmsmith.server.openai import chat, completions, models, tasks
from lmsmith.server.stream import json_response

log = logging.getLogger("lmsmith.server")
router = APIRouter()

PARTS = (
    chat, completions, models, tasks, conversations, answers, imports, labelling, attention, auth,
    pages,
)  # fmt: skip


def create_app(
    engine: AsyncEngine,
    *,
    token: str = "",
    hosts: Sequence[str] = LOOPBACK,
    store: Store | None = None,
) -> ASGIApp:
    """An ASGI application.

    Args:
        engine: the models; its thread starts and stops with the application.
        token: demanded of every request if it is not empty.
        hosts: names by which the server may be called; empty allows all.
        store: keeps conversations and judgements; without it there is no ``/api``.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.thread.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await app.state.answers.finish()
            await asyncio.to_thread(engine.thread.stop)

    app = FastAPI(
        title="lmsmith",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address made of the Host header
    )
    app.state.engine, app.state.store = engine, store
    app.state.authenticator = auth.Authenticator(token, store)
    app.state.answers = answers.PendingAnswers(engine.limits.unread_seconds)
    app.include_router(router)
    for part in PARTS:
        app.include_router(part.router)
    add_error_handlers(app)
    return Guard(
        _CatchCrashes(app, engine),
        authenticator=app.state.authenticator,
        is_open=pages.is_open,
        hosts=hosts,
        body_bytes=engine.limits.body_bytes,
    )


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine thread lives."""
    return _status("ok" if request.app.state.engine.thread.is_alive else "the engine has ended")


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while a request would be accepted."""
    engine: AsyncEngine = request.app.state.engine
    if engine.draining:
        return _status("draining")
    if not engine.thread.is_alive:
        return _status("the engine has ended")
    full = [name for name in engine.models if engine.is_full(name)]
    return _status(f"the queue of {full[0]} is full" if full else "ok")


def _status(word: str) -> Response:
    return json_response({"status": word}, status=200 if word == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus; admins alone see how much others use the server."""
    auth.require_role(request, ("admin",))
    engine: AsyncEngine = request.app.state.engine
    for name, model in engine.models.items():
        engine.metrics.waiting.labels(name).set(engine.waiting[name])
        engine.metrics.active.labels(name).set(model.scheduler.active)
        engine.metrics.cache_used.labels(name).set(model.scheduler.cache.used_bytes)
    return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _CatchCrashes:
    """Turns a programming error into a 500 and a log line; counts responses."""

    def __init__(self, app: ASGIApp, engine: AsyncEngine) -> None:
        self._app, self._engine = app, engine

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
                self._engine.metrics.responses.labels(path, str(message["status"])).inc()
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
