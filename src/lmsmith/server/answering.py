"""From the event loop's side: requests that wait their turn, and the events of their answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from lmsmith.core.errors import UserError
from lmsmith.generation.requests import Reply, Request, TokenEvent
from lmsmith.generation.scheduler import Event, Failed, Joined
from lmsmith.server.errors import ApiError, internal, refused, shutting_down
from lmsmith.server.limits import Limits
from lmsmith.server.metrics import Metrics
from lmsmith.server.served import ServedModel
from lmsmith.server.visitors import salt
from lmsmith.server.worker import EngineThread, Listener, Ticket

log = logging.getLogger("lmsmith.server")

MOST_TOGETHER = 64
"""Tokens of a batch: a client that reads slowly has many waiting, and others wait meanwhile."""


class Serving:
    """The models, their thread, and who waits for them.

    Args:
        models: in the order they were named; the first answers who names none.
        limits: what one client may ask for.
    """

    def __init__(self, models: Sequence[ServedModel], limits: Limits) -> None:
        self.models = {model.name: model for model in models}
        self.limits = limits
        self.metrics = Metrics()
        self.worker = EngineThread({model.name: model.scheduler for model in models})
        self.draining = False
        self.waiting = dict.fromkeys(self.models, 0)
        self.answers: set[Answer] = set()
        self._seconds = 1.0  # of a request, a running mean

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the first one if there is none.

        Raises:
            ApiError: 404, with the names there are.
        """
        if name is None:
            return next(iter(self.models.values()))
        found = self.models.get(name)
        if found is None:
            names = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no model {name!r} here; there is: {names}",
                param="model",
                code="model_not_found",
            )
        return found

    def answer(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        name: str,
        *,
        begun: float | None = None,
    ) -> Answer:
        """Let requests wait; they are one question, whose failures are shared.

        Args:
            begun: when a question that was let in already was asked (perf_counter), of which
                these are the next part: it waits for no place in the queue, is finished when the
                server ends, and its time runs since then.

        Raises:
            ApiError: they cannot be answered (400), too many wait (429), or it is over (503).
        """
        if self.draining and begun is None:
            self.metrics.rejected.labels("draining").inc()
            raise shutting_down()
        for request in requests:
            try:
                model.scheduler.check(request)
            except UserError as error:
                raise refused(error) from error
        if begun is None and self.is_full(model.name):
            self.metrics.rejected.labels("queue").inc()
            raise self._too_many(model)
        answer = Answer(self, model, requests, name, begun)
        self.answers.add(answer)
        for ticket in answer.tickets:
            self.worker.submit(ticket)
        return answer

    def is_full(self, name: str) -> bool:
        """Whether as many wait as may, beside those for whom there is a place."""
        free = self.limits.streams - self.models[name].scheduler.active
        return self.waiting[name] >= self.limits.queue + max(0, free)

    def _too_many(self, model: ServedModel) -> ApiError:
        waiting = self.waiting[model.name]
        seconds = math.ceil(self._seconds * waiting / self.limits.streams)
        return ApiError(
            429,
            f"{waiting} requests wait for {model.name} already; try again later",
            "rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(min(60, max(1, seconds)))},
        )

    def took(self, seconds: float) -> None:
        """An answer is over; said for the estimate in Retry-After."""
        self._seconds += 0.1 * (seconds - self._seconds)


@dataclass
class Question:
    """A prompt of a question, as far as it is answered.

    Attributes:
        replies: one for each sample.
        reused: tokens of the prompt that were not read again.
    """

    request: Request
    replies: list[Reply]
    reused: int = 0


class Answer:
    """The events of a question's answer, and what has come of it so far."""

    def __init__(
        self,
        serving: Serving,
        model: ServedModel,
        requests: Sequence[Request],
        name: str,
        begun: float | None = None,
    ) -> None:
        self.model, self.name = model, name
        self.questions = [
            Question(request, [Reply() for _ in range(request.settings.samples)])
            for request in requests
        ]
        self._serving, self._metrics = serving, serving.metrics.of(model.name)
        self._events: deque[tuple[int, Event, float]] = deque()
        self._come = asyncio.Event()
        self._asked = time.perf_counter()
        self._begun = self._asked if begun is None else begun
        self._last: dict[tuple[int, int], float] = {}
        self._waiting = set(range(len(requests)))
        self._closed = False
        serving.waiting[model.name] += len(requests)
        self.tickets = [
            Ticket(model.name, replace(request, salt=salt()), self._listener(number))
            for number, request in enumerate(requests)
        ]

    def _listener(self, number: int) -> Listener:
        return lambda event, moment: self._put(number, event, moment)

    def _put(self, number: int, event: Event, moment: float) -> None:
        self._events.append((number, event, moment))
        self._come.set()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(question.request.prompt) for question in self.questions)

    @property
    def written_tokens(self) -> int:
        return sum(len(reply.tokens) for each in self.questions for reply in each.replies)

    @property
    def reused_tokens(self) -> int:
        return sum(question.reused for question in self.questions)

    async def events(self) -> AsyncIterator[Iterator[tuple[int, TokenEvent]]]:
        """(prompt's number, event) until every reply has ended, all that came together at once.

        A token is added to its reply when it is taken from its batch, and not before.

        Raises:
            ApiError: the request failed, took too long, or the server ends.
        """
        left = sum(len(question.replies) for question in self.questions)
        spent = time.perf_counter() - self._begun
        timer = asyncio.get_running_loop().call_later(
            self._serving.limits.seconds - spent, self._time_is_over
        )
        try:
            while left:
                while not self._events:
                    self._come.clear()
                    await self._come.wait()
                tokens, error = self._next()
                left -= sum(event.finish is not None for _, event, _ in tokens)
                if tokens:
                    yield map(self._take, *zip(*tokens, strict=True))
                if error is not None and left:
                    raise self._failure(error)
        finally:
            timer.cancel()
        self._serving.took(time.perf_counter() - self._asked)

    async def whole(self) -> None:
        """Wait until every reply has ended."""
        async for batch in self.events():
            deque(batch, maxlen=0)

    def close(self) -> None:
        """Give up what is not finished: its slots are free from the next step on."""
        if self._closed:
            return
        self._closed = True
        self._serving.answers.discard(self)
        self._serving.waiting[self.model.name] -= len(self._waiting)
        finished = all(reply.finish for each in self.questions for reply in each.replies)
        if not finished:
            for ticket in self.tickets:
                self._serving.worker.cancel(ticket)

    def end(self, error: ApiError) -> None:
        """Raise an error from `events`, after what has come already."""
        self._put(0, Failed(-1, error), time.perf_counter())

    def went_away(self) -> None:
        """The client hung up."""
        self._metrics.cancelled.inc()
        self.close()

    def _time_is_over(self) -> None:
        self._put(0, Failed(-1, TimeoutError()), time.perf_counter())

    def _next(self) -> tuple[list[tuple[int, TokenEvent, float]], Exception | None]:
        """The tokens that are there, a batch at most, up to what ended the request."""
        tokens: list[tuple[int, TokenEvent, float]] = []
        while self._events and len(tokens) < MOST_TOGETHER:
            number, event, moment = self._events.popleft()
            if isinstance(event, Failed):
                return tokens, event.error
            if isinstance(event, Joined):
                self._joined(number, event)
            else:
                tokens.append((number, event, moment))
        return tokens, None

    def _joined(self, number: int, event: Joined) -> None:
        self.questions[number].reused = event.reused
        self._waiting.discard(number)
        self._serving.waiting[self.model.name] -= 1
        self._metrics.prompt_tokens.inc(len(self.questions[number].request.prompt))
        self._metrics.cached_tokens.inc(event.reused)

    def _take(self, number: int, event: TokenEvent, moment: float) -> tuple[int, TokenEvent]:
        self.questions[number].replies[event.sample].add(event)
        before = self._last.get((number, event.sample))
        if before is None:
            self._metrics.first_token.observe(moment - self._asked)
        else:
            self._metrics.gap.observe(moment - before)
        self._last[number, event.sample] = moment
        self._metrics.generated_tokens.inc()
        return number, event

    def _failure(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            self._serving.metrics.rejected.labels("timeout").inc()
            problem = f"no answer within {self._serving.limits.seconds:g} seconds"
            return ApiError(504, problem, "server_error", code="timeout")
        log.error("request %s failed: %s", self.name, error, exc_info=error)
        return internal(self.name)
