"""The engine in the event loop: models, their queue by person, generations, and metrics.

The models run in one thread (`lmsmith.server.engine_thread`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter as Counter_
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lmsmith.catalogue.remote import RemoteError
from lmsmith.core.errors import UserError
from lmsmith.generation.remote import RemoteScheduler
from lmsmith.generation.requests import Counted, Reply, Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Failed
from lmsmith.server.engine_thread import EngineEnded, EngineRequest, EngineThread
from lmsmith.server.errors import ApiError, bad_request, internal, remote_failure, shutting_down
from lmsmith.server.models import ServedModel
from lmsmith.server.requests import Limits, ParsedRequest
from lmsmith.server.turns import TextThreads

log = logging.getLogger("lmsmith.server")

MAX_BATCH = 64
"""Most tokens of a batch, so that a slow reader with many tokens does not delay others."""

_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)


@dataclass(frozen=True)
class ModelMetrics:
    """A model's metrics, looked up once, since every token counts in them."""

    first_token: Histogram
    gap: Histogram
    prompt_tokens: Counter
    cached_tokens: Counter
    generated_tokens: Counter
    cancelled: Counter


class Metrics:
    """Metrics for Prometheus, in a registry of the server's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counted: dict[tuple[Counter, str], int] = {}
        all_: dict[str, Any] = {"namespace": "lmsmith", "registry": self.registry}
        model = {"labelnames": ["model"], **all_}
        waits, gaps = {"buckets": _WAITS, **model}, {"buckets": _GAPS, **model}
        self.waiting = Gauge("requests_waiting", "Requests in the queue.", **model)
        self.active = Gauge("replies_active", "Replies being written or about to be.", **model)
        self.cache_used = Gauge(
            "cache_used_bytes", "Of the cache, kept conversations included.", **model
        )
        self.first_token = Histogram(
            "time_to_first_token_seconds", "From question to first token.", **waits
        )
        self.gap = Histogram(
            "inter_token_seconds", "From one token of a reply to the next.", **gaps
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **model)
        self.cached_tokens = Counter("cached_tokens", "Of those, not read again.", **model)
        self.generated_tokens = Counter("generated_tokens", "Tokens of replies.", **model)
        self.guessed_tokens = Counter("guessed_tokens", "Tokens that --draft guessed.", **model)
        self.accepted_tokens = Counter("accepted_tokens", "Of those, right ones.", **model)
        self.cancelled = Counter("requests_cancelled", "Clients that went away.", **model)
        self.rejected = Counter(
            "requests_rejected", "Requests refused, by reason.", ["reason"], **all_
        )
        self.responses = Counter(
            "responses", "Responses, by path and status.", ["path", "status"], **all_
        )

    def count_guesses(self, model: ServedModel) -> None:
        """Bring the counters of guessed and accepted tokens up to date."""
        if isinstance(model.scheduler, RemoteScheduler):
            return
        totals = {
            self.guessed_tokens: model.scheduler.guessed,
            self.accepted_tokens: model.scheduler.accepted,
        }
        for counter, total in totals.items():
            counter.labels(model.name).inc(total - self._counted.get((counter, model.key), 0))
            self._counted[counter, model.key] = total

    def of(self, model: str) -> ModelMetrics:
        names = [each.name for each in fields(ModelMetrics)]
        return ModelMetrics(**{name: getattr(self, name).labels(model) for name in names})

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class AsyncEngine:
    """The models, the first of which is the default, their thread, and the queue of requests.

    Attributes:
        models: by the name that clients use.
        candidates: versions on trial, by the name of the model that they may replace.
        loaded: all models in memory, by key: also those that only finish their requests.
        texts: where the texts of requests become tokens.
        on_drop: is called when a model has left memory.
    """

    def __init__(self, models: Sequence[ServedModel], limits: Limits) -> None:
        self.models = {model.name: model for model in models}
        self.candidates: dict[str, ServedModel] = {}
        self.loaded = {model.key: model for model in models}
        self.limits, self.texts = limits, TextThreads(lambda: bool(self.generations))
        self.metrics = Metrics()
        self.thread = EngineThread({model.thread_key: model.scheduler for model in models})
        self.on_drop: Callable[[], None] = lambda: None
        self.draining = False
        self.waiting = dict.fromkeys(self.models, 0)
        self.waiting_of: dict[str, Counter_[str]] = {name: Counter_() for name in self.models}
        self.generations: set[Generation] = set()
        self.mean_seconds = 1.0  # of a request, a running mean

    def submit(self, parsed: ParsedRequest, *, started: float | None = None) -> Generation:
        """Queue a request.

        Args:
            parsed: its prompts fail together.
            started: start time (perf_counter) of an accepted request, of which this is the next
                part: it needs no place in the queue, is finished at shutdown, and its timeout
                counts from then.

        Raises:
            ApiError: it cannot be generated (400), the queue is full (429), or the server ends
                (503).
        """
        model = parsed.model
        if self.draining and started is None:
            self.metrics.rejected.labels("draining").inc()
            raise shutting_down()
        for request in parsed.prompts:
            try:
                model.scheduler.check(request)
            except UserError as error:
                raise bad_request(error) from error
        if started is None and self.is_full(model, parsed.cache_salt):
            self.metrics.rejected.labels("queue").inc()
            waiting = self.waiting[model.name]
            own = self.waiting_of[model.name][parsed.cache_salt]
            seconds = math.ceil(self.mean_seconds * waiting / self.limits.streams)
            yours = "" if own == waiting else f", {own} of them yours"
            raise ApiError(
                429,
                f"{waiting} requests wait for {model.name} already{yours}; try again later",
                "rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(min(60, max(1, seconds)))},
            )
        generation = Generation(self, parsed, started)
        self.generations.add(generation)
        was_replaced = not self._is_current(model)  # after the request had chosen it
        if was_replaced:
            self._add(model)
        try:
            for each in generation.in_thread:
                self.thread.submit(each)
        except EngineEnded:
            generation.close()
            raise
        if was_replaced:
            self._retire(model)
        return generation

    def is_writing(self) -> bool:
        """Whether replies are in progress; any thread may ask."""
        return any(model.scheduler.active for model in list(self.loaded.values()))

    def is_full(self, model: ServedModel, person: str | None = None) -> bool:
        """Whether the queue of a model is full, not counting requests for which a row is free.

        Args:
            person: the cache salt of one person, who has an equal share of the queue with all that
                wait, and one place at least; however many places others have taken.
        """
        free = self.limits.streams - model.scheduler.active
        places = self.limits.queue + max(0, free)
        if person is None:
            return self.waiting[model.name] >= places
        waiting = self.waiting_of[model.name]
        return waiting[person] >= max(1, places // len({*waiting, person}))

    def count_waiting(self, model: ServedModel, person: str, more: int) -> None:
        """More prompts of a person wait, or fewer."""
        waiting = self.waiting_of[model.name]
        self.waiting[model.name] += more
        waiting[person] += more
        if not waiting[person]:
            del waiting[person]

    def replace(self, model: ServedModel) -> None:
        """Give new requests of its name to this model; the one before finishes its requests."""
        before = self.models[model.name]
        if self.candidates.get(model.name) is model:
            del self.candidates[model.name]
        self._add(model)
        self.models[model.name] = model
        self._retire(before)

    def set_candidate(self, name: str, model: ServedModel | None) -> None:
        """Load a version beside a model, or none; the candidate before finishes its requests."""
        before = self.candidates.pop(name, None)
        if model is not None:
            self._add(model)
            self.candidates[name] = model
        if before is not None:
            self._retire(before)

    def _is_current(self, model: ServedModel) -> bool:
        return model in (self.models.get(model.name), self.candidates.get(model.name))

    def _add(self, model: ServedModel) -> None:
        self.loaded[model.key] = model
        self.thread.add(model.thread_key, model.scheduler)

    def _retire(self, model: ServedModel) -> None:
        current = (*self.models.values(), *self.candidates.values())
        if any(each.thread_key == model.thread_key for each in current):
            return  # others answer with its weights
        self.thread.retire(model.thread_key, partial(self._dropped, model))

    def _dropped(self, model: ServedModel) -> None:
        if not self._is_current(model) and self.loaded.pop(model.key, None) is not None:
            self.metrics.count_guesses(model)
        self.on_drop()


@dataclass
class PromptResult:
    """A prompt, its replies so far, one for each sample, and the number of cached prompt tokens.

    ``counted`` are the counts of another server, one for each of its replies that have ended.
    """

    request: Request
    replies: list[Reply]
    cached: int = 0
    counted: list[Counted] = field(default_factory=list)


class Generation:
    """A submitted request: the events of its replies, and the replies so far."""

    def __init__(
        self, engine: AsyncEngine, parsed: ParsedRequest, started: float | None = None
    ) -> None:
        self.parsed, self.model, self.id = parsed, parsed.model, parsed.id
        self.prompts = [
            PromptResult(request, [Reply() for _ in range(request.settings.samples)])
            for request in parsed.prompts
        ]
        self._engine, self._metrics = engine, engine.metrics.of(self.model.name)
        self._events: deque[tuple[int, Event, float]] = deque()
        self._has_events = asyncio.Event()
        self._submitted = time.perf_counter()
        self._started = self._submitted if started is None else started
        self._last: dict[tuple[int, int], float] = {}
        self._waiting = set(range(len(self.prompts)))
        self._closed = False
        engine.count_waiting(self.model, parsed.cache_salt, len(self.prompts))
        self.in_thread = [
            EngineRequest(
                self.model.thread_key,
                replace(
                    request,
                    salt=parsed.cache_salt,
                    group=parsed.id,
                    adapter=self.model.adapter,
                ),
                partial(self._add, number),
            )
            for number, request in enumerate(parsed.prompts)
        ]

    def _add(self, number: int, event: Event, moment: float) -> None:
        self._events.append((number, event, moment))
        self._has_events.set()

    @property
    def replies(self) -> list[Reply]:
        return [reply for each in self.prompts for reply in each.replies]

    @property
    def token_counts(self) -> tuple[int, int, int]:
        """Tokens of prompts, of replies, and of prompts that were in the cache."""
        if self.model.is_remote:
            counted = [each.counted for each in self.prompts if each.counted]
            return (
                sum(each[0].prompt for each in counted),
                sum(count.new for each in counted for count in each),
                sum(each[0].cached for each in counted),
            )
        prompt = sum(len(each.request.prompt) for each in self.prompts)
        new = sum(len(reply.tokens) for reply in self.replies)
        return prompt, new, sum(each.cached for each in self.prompts)

    @property
    def counts_are_estimated(self) -> bool:
        """Whether another server writes the replies, and gave no counts of tokens."""
        return any(count.estimated for each in self.prompts for count in each.counted)

    def _count_waiting(self, more: int) -> None:
        self._engine.count_waiting(self.model, self.parsed.cache_salt, more)

    async def events(self) -> AsyncIterator[Iterator[tuple[int, TokenEvent]]]:
        """(number of the prompt, event) until every reply has ended, in batches.

        A token is added to its reply when it is taken from its batch.

        Raises:
            ApiError: the request failed, took too long, or the server ends.
        """
        left = len(self.replies)
        spent = time.perf_counter() - self._started
        timer = asyncio.get_running_loop().call_later(
            self._engine.limits.seconds - spent, self.end, TimeoutError()
        )
        try:
            while left:
                while not self._events:
                    self._has_events.clear()
                    await self._has_events.wait()
                tokens, error = self._next()
                left -= sum(event.finish is not None for _, event, _ in tokens)
                if tokens:
                    yield map(self._take, *zip(*tokens, strict=True))
                if error is not None and left:
                    raise self._failure(error)
        finally:
            timer.cancel()
        seconds = time.perf_counter() - self._submitted
        self._engine.mean_seconds += 0.1 * (seconds - self._engine.mean_seconds)

    async def finish(self) -> None:
        """Wait until every reply has ended."""
        async for batch in self.events():
            deque(batch, maxlen=0)

    def close(self) -> None:
        """Cancel what is not finished: its rows are free from the next step on."""
        if self._closed:
            return
        self._closed = True
        self._engine.generations.discard(self)
        self._count_waiting(-len(self._waiting))
        if not all(reply.finish for reply in self.replies):
            for request in self.in_thread:
                self._engine.thread.cancel(request)

    def end(self, error: Exception) -> None:
        """Raise an error from `events`, after the events that have come already."""
        self._add(0, Failed(-1, error), time.perf_counter())

    def disconnect(self) -> None:
        self._metrics.cancelled.inc()
        self.close()

    def _next(self) -> tuple[list[tuple[int, TokenEvent, float]], Exception | None]:
        """The waiting tokens, a batch at most, and the error after them, if there is one."""
        tokens: list[tuple[int, TokenEvent, float]] = []
        while self._events and len(tokens) < MAX_BATCH:
            number, event, moment = self._events.popleft()
            if isinstance(event, Failed):
                return tokens, event.error
            if isinstance(event, Admitted):
                self.prompts[number].cached = event.cached
                self._waiting.discard(number)
                self._count_waiting(-1)
                if not self.model.is_remote:  # whose server counts later
                    self._metrics.prompt_tokens.inc(len(self.prompts[number].request.prompt))
                    self._metrics.cached_tokens.inc(event.cached)
            elif isinstance(event, Counted):
                self.prompts[number].counted.append(event)
                self._metrics.prompt_tokens.inc(event.prompt)
                self._metrics.cached_tokens.inc(event.cached)
                self._metrics.generated_tokens.inc(event.new)
            else:
                tokens.append((number, event, moment))
        return tokens, None

    def _take(self, number: int, event: TokenEvent, moment: float) -> tuple[int, TokenEvent]:
        self.prompts[number].replies[event.sample].add(event)
        before = self._last.get((number, event.sample))
        if before is None:
            self._metrics.first_token.observe(moment - self._submitted)
        else:
            self._metrics.gap.observe(moment - before)
        self._last[number, event.sample] = moment
        if not self.model.is_remote:
            self._metrics.generated_tokens.inc()
        return number, event

    def _failure(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, RemoteError):
            return remote_failure(error)
        if isinstance(error, TimeoutError):
            self._engine.metrics.rejected.labels("timeout").inc()
            problem = f"no answer within {self._engine.limits.seconds:g} seconds"
            return ApiError(504, problem, "server_error", code="timeout")
        log.error("request %s failed: %s", self.id, error, exc_info=error)
        return internal(self.id)
