"""What becomes of events that come together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from worlds import MACHINE, RANDOM, TOKENIZER, read

from lmsmith.generation.requests import FinishReason, Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Failed
from lmsmith.generation.settings import SamplingSettings
from lmsmith.server.engine import MAX_BATCH, AsyncEngine, Generation
from lmsmith.server.errors import ApiError
from lmsmith.server.models import serve_models
from lmsmith.server.requests import Limits, ParsedRequest


def token(number: int, finish: FinishReason | None = None) -> TokenEvent:
    return TokenEvent(0, 0, number, text=f"{number} ", finish=finish)


class Waiting:
    """A generation whose events come from the test; no engine runs."""

    def __init__(self, seconds: float = 30) -> None:
        served = serve_models(
            {"random": read(RANDOM)},
            machine=MACHINE,
            weights="model",
            memory_bytes=40_000_000,
            streams=2,
        )
        self.engine = AsyncEngine(served, Limits(seconds=seconds))
        request = Request(TOKENIZER.encode("tea"), SamplingSettings(max_new_tokens=400))
        self.generation = Generation(
            self.engine,
            ParsedRequest(id="id", model=served[0], prompts=[request], cache_salt=""),
        )

    def come(self, *events: Event) -> None:
        (request,) = self.generation.in_thread
        for event in events:
            request.listener(event, time.perf_counter())

    async def batches(self) -> list[list[int]]:
        """The tokens of each batch; the reply has them, and nothing that comes later."""
        found, taken = [], 0
        (reply,) = self.generation.replies
        async for batch in self.generation.events():
            found.append([])
            for _, event in batch:
                taken += 1
                found[-1].append(event.token)
                assert len(reply.tokens) == taken
                assert reply.finish == event.finish
        return found

    def timeouts(self) -> float:
        return self.engine.metrics.rejected.labels("timeout")._value.get()


def run(waiting: Waiting) -> Sequence[Sequence[int]]:
    return asyncio.run(waiting.batches())


def test_what_is_there_comes_together_but_not_without_bound() -> None:
    waiting = Waiting()
    count = 2 * MAX_BATCH + 3
    waiting.come(Admitted(0, 2), *map(token, range(count - 1)), token(count - 1, "length"))
    found = run(waiting)
    assert [len(batch) for batch in found] == [MAX_BATCH, MAX_BATCH, 3]
    assert sum(found, []) == list(range(count))  # noqa: RUF017
    assert waiting.generation.prompts[0].cached == 2


def test_what_came_before_a_failure_is_not_lost() -> None:
    waiting = Waiting()
    waiting.come(Admitted(0, 0), token(1), token(2), Failed(0, ApiError(503, "it is over")))
    with pytest.raises(ApiError, match="it is over"):
        run(waiting)
    assert waiting.generation.replies[0].tokens == [1, 2]


def test_a_reply_that_is_whole_does_not_fail() -> None:
    """Its reader may be slow, and the time be over by then."""
    waiting = Waiting()
    waiting.come(Admitted(0, 0), token(1), token(2, "stop"), Failed(-1, TimeoutError()))
    assert run(waiting) == [[1, 2]]
    assert waiting.timeouts() == 0


def test_time_is_over() -> None:
    waiting = Waiting(seconds=0.05)
    waiting.come(Admitted(0, 0), token(1))
    with pytest.raises(ApiError, match=r"within 0\.05 seconds") as raised:
        run(waiting)
    assert raised.value.status == 504
    assert waiting.generation.replies[0].tokens == [1]
    assert waiting.timeouts() == 1
