"""The engine thread: the only one that uses tensors. It steps the models in turn.

The event loop hands over commands, and gets the events of a step in one call, so that neither waits
for the other. Every call takes processors from the model, so tokens that follow each other faster
than anybody reads are sent together.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lmsmith.generation.remote import RemoteScheduler
from lmsmith.generation.requests import Request, TokenEvent
from lmsmith.generation.scheduler import Event, Failed, Scheduler
from lmsmith.server.errors import ApiError
from lmsmith.training.machine import keep_threads

log = logging.getLogger("lmsmith.server")

AnyScheduler = Scheduler | RemoteScheduler

Listener = Callable[[Event, float], None]
"""Gets an event and its time (perf_counter)."""

FLUSH_SECONDS = 0.025
"""Least time between two deliveries of tokens. A reply's first token and its end, and a request's
start and failure, are delivered at once."""


@dataclass(eq=False)
class EngineRequest:
    """A prompt in the engine thread; the event loop calls its listener with every event."""

    model: str  # its key
    request: Request
    listener: Listener
    number: int = -1  # the scheduler's
    unfinished: int = 0  # replies
    has_token: bool = False
    is_over: bool = False  # no more events will come


class EngineEnded(ApiError):
    """The engine thread failed beyond a request, and no request can be generated any more."""

    def __init__(self) -> None:
        problem = "the engine has ended; the server must be restarted, and its log says why"
        super().__init__(500, problem, "server_error", code="engine_ended")


_Addressed = tuple[EngineRequest, Event, float]


class EngineThread:
    """Schedulers, by the key of their model, stepped in turn while they are busy.

    A retired scheduler finishes its requests and is dropped then, with its model's weights.
    Between two deliveries of nothing but tokens, ``flush_seconds`` pass.
    """

    def __init__(
        self, schedulers: Mapping[str, AnyScheduler], flush_seconds: float = FLUSH_SECONDS
    ) -> None:
        self._schedulers = dict(schedulers)
        for scheduler in schedulers.values():
            self._listen(scheduler)
        self._requests: dict[str, dict[int, EngineRequest]] = {name: {} for name in schedulers}
        self._retired: dict[str, Callable[[], None]] = {}
        self._commands: deque[Callable[[], list[_Addressed]]] = deque()
        self._unsent: list[_Addressed] = []
        self._flush_seconds, self._flushed_at = flush_seconds, -math.inf
        self._urgent = False
        self._wake = threading.Condition()
        self._pending: set[EngineRequest] = set()  # of which more events will come
        self._ending = self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; this event loop gets the events."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End after the current step; no more events come."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    def submit(self, request: EngineRequest) -> None:
        """Queue a request for the next step; raises EngineEnded if there is none any more."""
        with self._wake:
            if self._ended:
                raise EngineEnded
            self._pending.add(request)
        self._command(lambda: self._submit(request))

    def cancel(self, request: EngineRequest) -> None:
        """End a request at the next step."""
        request.is_over = True
        with self._wake:
            self._pending.discard(request)
        self._command(lambda: self._cancel(request))

    def add(self, name: str, scheduler: AnyScheduler) -> None:
        """Take one more scheduler, from the next step on."""
        self._command(lambda: self._add(name, scheduler))

    def retire(self, name: str, dropped: Callable[[], None]) -> None:
        """Drop a scheduler once it is idle; then ``dropped`` is called in the event loop."""
        self._command(lambda: self._retire(name, dropped))

    def fail_all(self, error: Exception) -> None:
        names = self._schedulers
        self._command(lambda: [each for name in names for each in self._fail(name, error)])

    def _command(self, command: Callable[[], list[_Addressed]]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _listen(self, scheduler: AnyScheduler) -> None:
        """Step a scheduler when an event has come from another server."""
        if isinstance(scheduler, RemoteScheduler):
            scheduler.wake = self._notify

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        try:
            keep_threads()
            while self._work():
                pass
        except BaseException as error:
            log.critical("the engine has ended; restart the server", exc_info=error)
            self._give_up()

    def _work(self) -> bool:
        """Wait for work, and do a step of it; False at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._ending or self._commands or self._has_work())
            if self._ending:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            self._unsent += command()
        if any(scheduler.will_prefill for scheduler in self._schedulers.values()):
            self._flush()  # reading a prompt takes long
        for name in self._schedulers:
            self._unsent += self._step(name)
        self._drop_idle()
        now = time.perf_counter()
        if self._urgent or now - self._flushed_at >= self._flush_seconds or not self._has_work():
            self._flush()
        return True

    def _give_up(self) -> None:
        """Fail every request, those too that come meanwhile; none is left to its timeout."""
        with self._wake:
            self._ended = True
            pending = self._pending
            self._pending = set()
        now = time.perf_counter()
        self._unsent += [(each, Failed(-1, EngineEnded()), now) for each in pending]
        self._flush()

    def _has_work(self) -> bool:
        return any(scheduler.has_work for scheduler in self._schedulers.values())

    def _step(self, name: str) -> list[_Addressed]:
        scheduler = self._schedulers[name]
        if not scheduler.has_work:
            return []
        try:
            return self._addressed(name, scheduler.step())
        except Exception as error:
            log.exception("model %s: a step failed; its requests are ended", name)
            return self._fail(name, error)

    def _add(self, name: str, scheduler: AnyScheduler) -> list[_Addressed]:
        self._retired.pop(name, None)
        self._listen(scheduler)
        self._schedulers[name] = scheduler
        self._requests.setdefault(name, {})
        return []

    def _retire(self, name: str, dropped: Callable[[], None]) -> list[_Addressed]:
        if name in self._schedulers:
            self._retired[name] = dropped
        return []

    def _drop_idle(self) -> None:
        for name in [name for name in self._retired if not self._schedulers[name].busy]:
            del self._schedulers[name], self._requests[name]
            self._call(self._retired.pop(name))

    def _submit(self, request: EngineRequest) -> list[_Addressed]:
        if request.is_over:
            return []
        try:
            request.number = self._schedulers[request.model].submit(request.request)
        except Exception as error:
            self._urgent = True
            self._pending.discard(request)
            return [(request, Failed(-1, error), time.perf_counter())]
        request.unfinished = request.request.settings.samples
        self._requests[request.model][request.number] = request
        return []

    def _cancel(self, request: EngineRequest) -> list[_Addressed]:
        requests = self._requests.get(request.model, {})  # of none that was dropped
        if requests.pop(request.number, None) is not None:
            self._schedulers[request.model].cancel(request.number)
        return []

    def _fail(self, name: str, error: Exception) -> list[_Addressed]:
        return self._addressed(name, self._schedulers[name].fail_all(error))

    def _addressed(self, name: str, events: Sequence[Event]) -> list[_Addressed]:
        """Events with their requests; finished requests are forgotten."""
        requests, found, now = self._requests[name], list[_Addressed](), time.perf_counter()
        for event in events:
            request = requests.get(event.request)
            if request is None:
                continue
            found.append((request, event, now))
            is_token = isinstance(event, TokenEvent)
            if not isinstance(event, TokenEvent):
                self._urgent = True
            elif event.finish is not None or not request.has_token:
                self._urgent = request.has_token = True
                request.unfinished -= event.finish is not None
            if isinstance(event, Failed) or (is_token and not request.unfinished):
                del requests[event.request]
                self._pending.discard(request)
        return found

    def _flush(self) -> None:
        events, self._unsent = self._unsent, []
        self._urgent, self._flushed_at = False, time.perf_counter()
        if events:
            self._call(partial(_deliver, events))

    def _call(self, function: Callable[[], None]) -> None:
        """Call a function in the event loop."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop was closed meanwhile
            log.debug("events came after the end")


def _deliver(events: list[_Addressed]) -> None:
    for request, event, moment in events:
        if not request.is_over:
            request.listener(event, moment)
