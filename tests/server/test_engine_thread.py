"""The engine thread tells at once what somebody waits for, and the rest together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from lmsmith.core.errors import UserError
from lmsmith.generation.engine import Engine, InferenceDecoder, SamplingSettings, answer
from lmsmith.generation.requests import Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Failed, Scheduler
from lmsmith.models.config import ModelConfig
from lmsmith.server.engine_thread import EngineRequest, EngineThread
from tiny_models import random_decoder

MODEL = InferenceDecoder(random_decoder(ModelConfig(2, 32, 4, 600, 300)))
LENGTH = 40
PAGES_FOR_ONE = 500 * 2 * 2 * 32 * 4  # tokens, layers, keys and values, width, bytes


@dataclass
class Heard:
    """A request's events, with the number of the call that told them."""

    request: Request
    events: list[Event] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, TokenEvent)]


def asked(seed: int, *, prompt: int = 20, tokens: int = LENGTH, samples: int = 1) -> Heard:
    sampling = SamplingSettings(max_new_tokens=tokens, seed=seed, samples=samples)
    return Heard(Request([(seed + 7 * place) % 300 for place in range(prompt)], sampling))


def all_heard(
    first: Sequence[Heard],
    flush_seconds: float,
    *,
    after: tuple[Heard, int, Heard] | None = None,
    cache_bytes: int = 2**24,
) -> list[Heard]:
    """Let requests be answered; the last of ``after`` is asked at so many events of its first."""
    scheduler = Scheduler(MODEL, None, cache_bytes=cache_bytes, rows=8)
    everyone = [*first, *([after[2]] if after else [])]

    async def run() -> None:
        loop, calls = asyncio.get_running_loop(), 0
        over = asyncio.Event()
        worker = EngineThread({"m": scheduler}, flush_seconds)

        def ended(heard: Heard) -> bool:
            ends = [e for e in heard.events if isinstance(e, Failed) or getattr(e, "finish", None)]
            return len(ends) == heard.request.settings.samples

        def ask(heard: Heard) -> None:
            def listen(event: Event, moment: float) -> None:
                heard.events.append(event)
                heard.calls.append(calls)
                heard.moments.append(moment)
                if after and heard is after[0] and len(heard.events) == after[1]:
                    ask(after[2])
                if all(map(ended, everyone)):
                    over.set()

            worker.submit(EngineRequest("m", heard.request, listen))

        plain = loop.call_soon_threadsafe

        def counted(*args: object) -> object:
            def call() -> None:
                nonlocal calls
                calls += 1
                args[0](*args[1:])  # type: ignore[operator]

            return plain(call)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
        for heard in first:
            ask(heard)
        worker.start(loop)
        await asyncio.wait_for(over.wait(), 60)
        await asyncio.to_thread(worker.stop)

    asyncio.run(run())
    return everyone


@pytest.mark.parametrize("flush_seconds", [0.0, 0.003, math.inf])
def test_everything_is_told_once_and_in_order(flush_seconds: float) -> None:
    whole = answer(Engine(MODEL), [asked(seed).request for seed in range(5)])
    for heard, (reply,) in zip(
        all_heard([asked(seed) for seed in range(5)], flush_seconds), whole, strict=True
    ):
        assert isinstance(heard.events[0], Admitted)
        assert heard.tokens == reply.tokens
        assert heard.moments == sorted(heard.moments)


def test_what_nobody_waits_for_is_told_together() -> None:
    (heard,) = all_heard([asked(3)], math.inf)
    first, rest = heard.calls[:2], heard.calls[2:]  # it joined, and its first token
    assert len(set(first)) == 1
    assert set(rest) == {first[0] + 1}
    assert len(rest) == LENGTH - 1
    assert len(set(heard.moments[1:])) == LENGTH


def test_every_step_is_told_where_nothing_is_to_be_saved() -> None:
    (heard,) = all_heard([asked(3)], 0.0)
    assert len(set(heard.calls)) == LENGTH


def test_samples_begin_together() -> None:
    (heard,) = all_heard([asked(3, samples=3)], math.inf)
    assert heard.calls.count(heard.calls[0]) == 1 + 3
    assert len(heard.tokens) == 3 * LENGTH


def test_what_is_there_is_told_before_a_prompt_is_read() -> None:
    """Reading takes long: the tokens of the others do not wait for it."""
    writer, reader = asked(3, tokens=200), asked(4, prompt=500, tokens=5)
    all_heard([writer], math.inf, after=(writer, 1, reader))
    before = writer.calls.index(reader.calls[0])
    # Told with the reader's joining are the tokens of that one step alone.
    assert writer.calls.count(reader.calls[0]) == 1
    assert before > 1
    joined, first, *rest = reader.calls
    assert joined < first < min(rest)
    assert len(set(rest)) == 1


def test_a_request_that_cannot_be_taken_fails() -> None:
    (heard,) = all_heard([asked(3, prompt=600)], math.inf)
    (event,) = heard.events
    assert isinstance(event, Failed)
    assert isinstance(event.error, UserError)


def test_those_who_wait_for_room_do_not_make_every_step_told() -> None:
    """There are rows for both, but the cache has pages for one."""
    writer, waiter = asked(3, tokens=300), asked(4, tokens=300)
    all_heard([writer], math.inf, after=(writer, 1, waiter), cache_bytes=PAGES_FOR_ONE)
    assert waiter.calls[0] > writer.calls[-2]
    assert len(set(writer.calls)) < 10
