"""A scheduler without a model: requests go to another server, whose replies come as events.

It takes the requests of `lmsmith.generation.scheduler.Scheduler`, and gives its events, so callers
need not know where a model runs. A prompt is in `byte_tokenizer`'s tokens; here it becomes messages
or a text again. Each sample is a request to the server, in a thread of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.catalogue.remote import BYTES_PER_TOKEN, Call, Cancelled, RemoteError, RemoteModel
from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.generation.requests import Counted, FinishReason, Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Failed
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import vocabulary_of

TOKEN = -1
"""Token of an event: a piece of text of a server whose tokens are not known here."""

MOST_SEED = 2**31
"""Seeds that every server takes are below it."""

MOST_TOKENS = 2**31
"""No count of tokens is as large."""

GIVEN_UP = ("abort", "error")
"""Finish reasons of replies that their server gave up."""

_CANNOT = "another server runs this model"


@dataclass(eq=False)
class Running:
    """A request, the numbers of its samples that have not begun, and those that have not ended."""

    number: int
    request: Request
    to_begin: deque[int]
    unfinished: int
    calls: dict[int, Call]


class RemoteScheduler:
    """Requests in, events out; `step` returns the events that have come.

    Args:
        model: where requests go.
        rows: maximum number of requests to the server at a time.
        waits: whether `step` waits for an event.

    Attributes:
        active: replies in progress; any thread may read it.
        wake: is called by any thread when there is an event.
    """

    will_prefill = False

    def __init__(self, model: RemoteModel, *, rows: int, waits: bool = False) -> None:
        self.model, self.max_rows = model, rows
        self.vocabulary = vocabulary_of(model.tokenizer, model.tokenizer.vocabulary_size)
        self.wake: Callable[[], None] = lambda: None
        self.active = self._next = 0
        self._waits = waits
        self._waiting: deque[Running] = deque()
        self._running: dict[int, Running] = {}
        self._events: deque[tuple[Running, int, Event]] = deque()
        self._has_events = threading.Condition()

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do now; any thread may ask."""
        return bool(self._events or (self._waiting and self.active < self.max_rows))

    def check(self, request: Request) -> None:
        """Raises UserError for what the server cannot do, or settings out of range."""
        settings = request.settings
        if settings.wants_log_probs or settings.prompt_log_probs or request.forced:
            raise UserError(f"log-probabilities: {_CANNOT}, and does not give them here")
        if settings.logit_bias:
            raise UserError(f"logit_bias: {_CANNOT}, whose tokens are not known here")
        if problems := settings.check():
            raise UserError("\n".join(map(str, problems)))
        if not len(request.prompt):
            raise UserError(f"{request.name or 'the prompt'} is empty", "write something")

    def submit(self, request: Request) -> int:
        """Queue a request; returns its number. Raises UserError as `check`."""
        self.check(request)
        number, self._next = self._next, self._next + 1
        samples = request.settings.samples
        queued = Running(number, request, deque(range(samples)), samples, {})
        self._running[number] = queued
        self._waiting.append(queued)
        return number

    def submit_all(self, requests: Sequence[Request]) -> list[int]:
        """`submit` each, or none if there is anything wrong with one."""
        for request in requests:
            self.check(request)
        return [self.submit(request) for request in requests]

    def cache_prefix(self, prefix: Sequence[int]) -> None:
        """Nothing: what the server keeps is its own matter."""

    def cancel(self, number: int) -> None:
        """End a request, and its requests to the server."""
        found = self._running.pop(number, None)
        if found is None:
            return
        if found in self._waiting:
            self._waiting.remove(found)
        for call in found.calls.values():
            call.cancel()
        self.active -= len(found.calls)
        found.calls.clear()

    def fail_all(self, error: Exception) -> list[Event]:
        """End every request."""
        numbers = sorted(self._running)
        for number in numbers:
            self.cancel(number)
        return [Failed(number, error) for number in numbers]

    def step(self) -> list[Event]:
        """Send what waits, as far as rows go, and return the events that have come."""
        events = self._send()
        with self._has_events:
            if self._waits and self.busy and not events:
                # A wait without end could not be interrupted on every system.
                while not self._events:
                    self._has_events.wait(1.0)
            came = list(self._events)
            self._events.clear()
        for running, sample, event in came:
            if self._running.get(running.number) is running:
                events.append(event)
                self._ended(running, sample, event)
        return events + self._send()

    def _ended(self, running: Running, sample: int, event: Event) -> None:
        if isinstance(event, Failed):
            self.cancel(running.number)
        elif isinstance(event, TokenEvent) and event.finish is not None:
            running.calls.pop(sample)
            self.active -= 1
            running.unfinished -= 1
            if not running.unfinished:
                del self._running[running.number]

    def _send(self) -> list[Event]:
        admitted: list[Event] = []
        while self._waiting and self.active < self.max_rows:
            first = self._waiting[0]
            if len(first.to_begin) == first.request.settings.samples:
                admitted.append(Admitted(first.number, 0))
            sample = first.to_begin.popleft()
            if not first.to_begin:
                self._waiting.popleft()
            call = Call(self.model, *self._asked(first.request, sample))
            first.calls[sample] = call
            self.active += 1
            work = (first, sample, call)
            threading.Thread(target=self._read, args=work, name="remote", daemon=True).start()
        return admitted

    def _asked(self, request: Request, sample: int) -> tuple[str, dict[str, Any]]:
        """Path and body of the request for one sample."""
        return _asked(self.model, request, sample)

    def _add(self, running: Running, sample: int, event: Event) -> None:
        """Hand over an event of a sample; any thread may."""
        with self._has_events:
            self._events.append((running, sample, event))
            self._has_events.notify()
        self.wake()

    def _read(self, running: Running, sample: int, call: Call) -> None:
        """In a thread of its own: a sample's events, until it ends or fails."""
        try:
            for event in self._events_of(running, sample, call):
                self._add(running, sample, event)
        except Cancelled:
            return
        except Exception as error:
            self._add(running, sample, Failed(running.number, error))

    def _events_of(self, running: Running, sample: int, call: Call) -> Iterator[Event]:
        """A sample's events, from the server's."""
        number, finish, pieces, half = running.number, "", 0, ""
        usage: dict[str, Any] = {}
        for event in call.events():
            usage = found if isinstance(found := event.get("usage"), dict) else usage
            text, ends = _piece(event)
            text, half = _joined(half + text)
            finish = ends or finish
            if text:
                pieces += 1
                yield TokenEvent(number, sample, TOKEN, text=text)
        if half:
            yield TokenEvent(number, sample, TOKEN, text=encodable(half))
        if finish in GIVEN_UP:
            problem = f"the model's server did not finish the reply (finish_reason: {finish})"
            raise RemoteError(problem, "try again", code="upstream_error")
        yield _counted(running.request, number, usage, pieces)
        last: FinishReason = "length" if finish == "length" else "stop"
        yield TokenEvent(number, sample, TOKEN, finish=last)


def _asked(model: RemoteModel, request: Request, sample: int) -> tuple[str, dict[str, Any]]:
    """Path and body of the request for one sample."""
    settings = request.settings
    body: dict[str, Any] = {"model": model.model, **_content(model, request.prompt)}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= {"temperature": settings.temperature, "top_p": settings.top_p}
    body["seed"] = (settings.seed + request.stream + sample) % MOST_SEED
    if settings.max_new_tokens < model.context:  # else as many as fit
        body["max_tokens"] = settings.max_new_tokens
    if settings.stop:
        body["stop"] = list(settings.stop)
    body |= _penalties(settings)
    return ("/chat/completions" if "messages" in body else "/completions"), body


def _penalties(settings: SamplingSettings) -> dict[str, Any]:
    """Settings that not all servers know, where they change anything."""
    known: dict[str, tuple[Any, Any]] = {
        "presence_penalty": (settings.presence_penalty, 0.0),
        "frequency_penalty": (settings.frequency_penalty, 0.0),
        "top_k": (settings.top_k, 0),
        "min_p": (settings.min_p, 0.0),
        "repetition_penalty": (settings.repetition_penalty, 1.0),
        "ignore_eos": (not settings.stop_tokens, False),
    }
    return {name: value for name, (value, default) in known.items() if value != default}


def _content(model: RemoteModel, prompt: Sequence[int]) -> dict[str, Any]:
    """Messages, where the prompt has roles; else a text."""
    tokenizer = model.tokenizer
    roles = {tokenizer.role_token(role): role for role in ("system", "user", "assistant")}
    messages: list[tuple[str, list[int]]] = []
    for token in prompt:
        if token in roles:
            messages.append((roles[token], []))
        elif messages:
            messages[-1][1].append(token)
    if not messages:
        return {"prompt": tokenizer.decode(prompt)}
    asked = [{"role": role, "content": tokenizer.decode(tokens)} for role, tokens in messages]
    return {"messages": asked[:-1] or [{"role": "user", "content": ""}]}  # the last is the reply's


def _piece(event: dict[str, Any]) -> tuple[str, str]:
    """An event's text, and why the reply ends with it, if it does."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise RemoteError("the model's server sent a choice that is none", code="upstream_invalid")
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    finish = choice.get("finish_reason")
    return (text if isinstance(text, str) else ""), (finish if isinstance(finish, str) else "")


def _counted(request: Request, number: int, usage: dict[str, Any], pieces: int) -> Counted:
    """Tokens as the server counts them; else about, from bytes and pieces of text."""
    prompt, new = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is not None and new is not None:
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        return Counted(number, prompt, new, min(cached or 0, prompt))
    return Counted(number, -(-len(request.prompt) // BYTES_PER_TOKEN), pieces, 0, True)


def _count(given: object) -> int | None:
    """A number of tokens, unless what is given can be none."""
    return given if type(given) is int and 0 <= given < MOST_TOKENS else None


def _joined(text: str) -> tuple[str, str]:
    """Text that can be encoded, and half of a character at its end, whose rest may come."""
    end = len(text) - ("\ud800" <= text[-1:] <= "\udbff")
    return encodable(text[:end]), text[end:]
