"""The application: its routes behind the guard; the server that runs it and drains at shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from types import FrameType

import uvicorn
from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store
from lmsmith.generation.scheduler import Scheduler
from lmsmith.server import auth, pages
from lmsmith.server.api import answers, attention, comparing, conversations, labelling, versions
from lmsmith.server.classifiers import ServedClassifier
from lmsmith.server.connections import ConnectionLimits, Connections
from lmsmith.server.encoders import Encoders
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError, add_error_handlers, internal, shutting_down
from lmsmith.server.following import Following
from lmsmith.server.guard import LOOPBACK, Guard
from lmsmith.server.improvements import Improvements
from lmsmith.server.models import Loader
from lmsmith.server.openai import completions, embeddings, models, tasks
from lmsmith.server.proxy import behind_proxy
from lmsmith.server.stream import json_response
from lmsmith.server.translators import ServedTranslator
from lmsmith.server.trials import Trials
from lmsmith.server.turns import IN_DATABASE, Turns

log = logging.getLogger("lmsmith.server")
router = APIRouter()

PARTS = (
    completions,
    embeddings,
    models,
    tasks,
    conversations,
    answers,
    comparing,
    labelling,
    versions,
    attention,
    auth,
    pages,
)


def create_app(
    engine: AsyncEngine,
    store: Store,
    *,
    token: str = "",
    hosts: Sequence[str] = LOOPBACK,
    loader: Loader | None = None,
    database: str = "",
    recipe: str = "",
    translators: Mapping[str, ServedTranslator] | None = None,
    classifiers: Mapping[str, ServedClassifier] | None = None,
    encoders: Encoders | None = None,
    root_path: str = "",
    proxies: Sequence[str] = (),
) -> ASGIApp:
    """An ASGI application.

    Args:
        engine: the models; its thread starts and stops with the application.
        store: keeps people, sessions, conversations and judgements.
        token: required in every request if it is not empty.
        hosts: names by which the server may be called; empty allows all.
        loader: reads newly promoted versions; models follow nothing if None.
        database: of the store, as commands name it; the default one if empty.
        recipe: a .toml file of the settings of improvements; the shipped one if empty.
        translators, classifiers: by the names of the tasks that they answer.
        encoders: make vectors of texts; none if left out.
        root_path: path of the page, below which all others stand; as `checked_root_path` gives it.
        proxies: whose word about a client counts; as `checked_proxies` gives them.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.thread.start(asyncio.get_running_loop())
        follow = asyncio.ensure_future(app.state.following.run())
        try:
            yield
        finally:
            follow.cancel()
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
    app.state.root_path = root_path
    app.state.translators = dict(translators or {})
    app.state.classifiers = dict(classifiers or {})
    app.state.encoders = encoders or Encoders()
    app.state.in_database = Turns(IN_DATABASE)
    app.state.authenticator = auth.Authenticator(token, store)
    app.state.answers = answers.PendingAnswers()
    app.state.following = Following(engine, loader)
    app.state.trials = Trials(engine, store, app.state.following)
    app.state.improvements = Improvements(database, recipe)
    app.include_router(router)
    for part in PARTS:
        app.include_router(part.router)
    add_error_handlers(app)
    guarded = Guard(
        _CatchCrashes(app, engine),
        authenticator=app.state.authenticator,
        is_open=pages.is_open,
        hosts=hosts,
        body_bytes=engine.limits.body_bytes,
    )
    return behind_proxy(guarded, root_path, proxies)


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
    full = [name for name, model in engine.models.items() if engine.is_full(model)]
    return _status(f"the queue of {full[0]} is full" if full else "ok")


def _status(word: str) -> Response:
    return json_response({"status": word}, status=200 if word == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus; admins alone see how much others use the server."""
    auth.require_role(request, ("admin",))
    engine: AsyncEngine = request.app.state.engine
    for name in engine.models:
        loaded = [each for each in engine.loaded.values() if each.name == name]
        schedulers = [each.scheduler for each in loaded]
        used = sum(each.cache.used_bytes for each in schedulers if isinstance(each, Scheduler))
        engine.metrics.waiting.labels(name).set(engine.waiting[name])
        engine.metrics.active.labels(name).set(sum(each.active for each in schedulers))
        engine.metrics.cache_used.labels(name).set(used)
        for model in loaded:
            engine.metrics.count_guesses(model)
    return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _CatchCrashes:
    """Turns a programming error into a 500 and a log line; counts responses."""

    def __init__(self, app: ASGIApp, engine: AsyncEngine) -> None:
        self._app, self._engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                path = getattr(scope.get("route"), "path", "other")
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


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM drains the engine's requests and is no failure.

    ``ready`` is called once requests are accepted. ``connections`` are limited as the system's
    files allow if left out.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: AsyncEngine,
        listening: socket.socket,
        ready: Callable[[], None] = lambda: None,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self.connections = Connections(connections or ConnectionLimits.of_system())
        config = uvicorn.Config(
            app,
            http=self.connections.protocol(),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            proxy_headers=False,
            timeout_graceful_shutdown=int(engine.limits.drain_seconds) + 5,
        )
        super().__init__(config)
        self._engine, self._listening, self._ready = engine, listening, ready

    def serve_until_stopped(self) -> None:
        """Serve until a signal, or `stop` in another thread; running requests are finished."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve([self._listening]))

    def stop(self) -> None:
        """Accept no more requests, finish the running ones, and end `serve_until_stopped`."""
        self._engine.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another program has begun to listen meanwhile
            host, port = self._listening.getsockname()[:2]
            raise _cannot_listen(f"{host}:{port}", error) from error
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:  # twice a second
            self.connections.close_slow()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.draining = True
        draining = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()

    async def _cut_off(self) -> None:
        await asyncio.sleep(self._engine.limits.drain_seconds)
        if self._engine.generations:
            log.warning("%d requests are cut off", len(self._engine.generations))
        self._engine.thread.fail_all(shutting_down())

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The first SIGINT or SIGTERM drains, a second one ends at once; neither is an error."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.stop()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that has its address, port 0 being any that is free. Until the server starts, it
    refuses connections: no client waits for models that are being read.

    Raises:
        UserError: it cannot have the address.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: there is no such port", "choose one of 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.ExitStack() as closing:
            made = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind((host, port))
            closing.pop_all()
            return made
    except OSError as error:
        raise _cannot_listen(f"{host}:{port}", error) from error


def _cannot_listen(address: str, error: OSError) -> UserError:
    return UserError(f"{address}: cannot listen there ({error})", "choose another --port")


def is_any(listening: socket.socket) -> bool:
    """Whether a socket listens at every address of this machine."""
    return ipaddress.ip_address(str(listening.getsockname()[0])).is_unspecified


def addresses(listening: socket.socket, host: str) -> list[str]:
    """URLs of the server at ``host``: from this machine, then from others that can reach it."""
    port, family = listening.getsockname()[1], listening.family
    names = [host]
    if is_any(listening):
        is_v6 = family == socket.AF_INET6
        names = ["::1" if is_v6 else "127.0.0.1"]
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            # An address for documents alone: nothing is sent; the system chooses the route.
            probe.connect(("2001:db8::1" if is_v6 else "192.0.2.1", 9))
            names.append(str(probe.getsockname()[0]))
    return [f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}" for name in names]
