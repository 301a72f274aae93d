"""The one thread that runs models: requests from the event loop in, events back to it.

All tensors are touched in this thread alone. The event loop hands over commands, and gets the
events of a step in one call, so that neither waits for the other. Every call takes processors from
the model, so that tokens that follow each other faster than anybody reads are told together.
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

from lmsmith.generation.requests import Request, TokenEvent
from lmsmith.generation.scheduler import Event, Failed, Scheduler

log = logging.getLogger("lmsmith.server")

Listener = Callable[[Event, float], None]
"""Gets an event, and when it came about (perf_counter)."""

TOLD_SECONDS = 0.025
"""Tokens of replies under way are told at most so often. Whatever somebody waits for is told at
once: a reply's first token, its end, that a request joins or fails."""


@dataclass(eq=False)
class Ticket:
    """A request on its way through the engine thread.

    Attributes:
        model: the scheduler's name.
        request: what is asked.
        listener: called in the event loop with every event.
        number: of the scheduler, once it has the request.
        left: replies that are not finished.
        begun: whether it has a token.
        over: whether no more events will come.
    """

    model: str
    request: Request
    listener: Listener
    number: int = -1
    left: int = 0
    begun: bool = False
    over: bool = False


Told = tuple[Ticket, Event, float]


class EngineThread:
    """Schedulers, stepped in turn while they have something to do.

    Args:
        schedulers: by the name of their model.
        told_seconds: between two calls that tell the event loop of tokens alone.
    """

    def __init__(
        self, schedulers: Mapping[str, Scheduler], told_seconds: float = TOLD_SECONDS
    ) -> None:
        self._schedulers = dict(schedulers)
        self._tickets: dict[str, dict[int, Ticket]] = {name: {} for name in schedulers}
        self._commands: deque[Callable[[], list[Told]]] = deque()
        self._untold: list[Told] = []
        self._told_seconds, self._told_at = told_seconds, -math.inf
        self._urgent = False
        self._wake = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; events go to this event loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way; whoever waits for an event waits in vain."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Ask; the answer is events."""
        self._command(lambda: self._submit(ticket))

    def cancel(self, ticket: Ticket) -> None:
        """No more of a request, from the next step on."""
        ticket.over = True
        self._command(lambda: self._cancel(ticket))

    def fail_all(self, error: Exception) -> None:
        """End every request with an error."""
        self._command(
            lambda: [pair for name in self._schedulers for pair in self._fail(name, error)]
        )

    def _command(self, command: Callable[[], list[Told]]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ending or self._commands or self._busy())
                if self._ending:
                    return
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                self._untold += command()
            if any(scheduler.will_read for scheduler in self._schedulers.values()):
                self._tell()  # reading a prompt takes long
            for name in self._schedulers:
                self._untold += self._step(name)
            if self._urgent or time.perf_counter() - self._told_at >= self._told_seconds:
                self._tell()

    def _busy(self) -> bool:
        return any(scheduler.busy for scheduler in self._schedulers.values())

    def _step(self, name: str) -> list[Told]:
        scheduler = self._schedulers[name]
        if not scheduler.busy:
            return []
        try:
            return self._addressed(name, scheduler.step())
        except Exception as error:
            log.exception("model %s: a step failed; its requests are ended", name)
            return self._fail(name, error)

    def _submit(self, ticket: Ticket) -> list[Told]:
        if ticket.over:
            return []
        try:
            ticket.number = self._schedulers[ticket.model].submit(ticket.request)
        except Exception as error:
            self._urgent = True
            return [(ticket, Failed(-1, error), time.perf_counter())]
        ticket.left = ticket.request.settings.samples
        self._tickets[ticket.model][ticket.number] = ticket
        return []

    def _cancel(self, ticket: Ticket) -> list[Told]:
        if self._tickets[ticket.model].pop(ticket.number, None) is not None:
            self._schedulers[ticket.model].cancel(ticket.number)
        return []

    def _fail(self, name: str, error: Exception) -> list[Told]:
        return self._addressed(name, self._schedulers[name].fail_all(error))

    def _addressed(self, name: str, events: Sequence[Event]) -> list[Told]:
        """Events with whom they are for; tickets that are over are forgotten."""
        tickets, found, now = self._tickets[name], list[Told](), time.perf_counter()
        for event in events:
            ticket = tickets.get(event.request)
            if ticket is None:
                continue
            found.append((ticket, event, now))
            if not isinstance(event, TokenEvent):
                self._urgent = True
            elif event.finish is not None or not ticket.begun:
                self._urgent = ticket.begun = True
                ticket.left -= event.finish is not None
            if isinstance(event, Failed) or (isinstance(event, TokenEvent) and not ticket.left):
                del tickets[event.request]
        return found

    def _tell(self) -> None:
        told, self._untold = self._untold, []
        self._urgent, self._told_at = False, time.perf_counter()
        if not told or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_hand_over, told)
        except RuntimeError:  # the loop was closed meanwhile
            log.debug("events came after the end")


def _hand_over(told: list[Told]) -> None:
    for ticket, event, moment in told:
        if not ticket.over:
            ticket.listener(event, moment)
