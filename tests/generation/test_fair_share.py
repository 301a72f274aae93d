"""One greedy owner keeps nobody waiting, and whoever makes room gets the same replies."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_scheduler import (
    MODEL,
    MODELS,
    TOKENIZER,
    assert_equal,
    run,
    serve,
    small,
    some_requests,
    tokens_of,
)

from lmsmith.generation.engine import Engine, SamplingSettings, answer
from lmsmith.generation.fair_share import QUANTUM
from lmsmith.generation.requests import Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Scheduler

SOURCE = random.Random(0)


def request(owner: str, group: str, *, tokens: int = 300, samples: int = 1) -> Request:
    settings = SamplingSettings(max_new_tokens=tokens, samples=samples, seed=SOURCE.randrange(99))
    return Request(tokens_of(SOURCE, 20), settings, salt=owner, group=group)


def steps_until_first_token(scheduler: Scheduler, asked: Request) -> int:
    number = scheduler.submit(asked)
    for step in range(1, 2000):
        for event in scheduler.step():
            if isinstance(event, TokenEvent) and event.request == number:
                return step
    raise AssertionError("no token")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("rows", "tokens"), [(3, 1200), (8, 900), (8, 4000)])
def test_replies_that_made_room_are_what_the_engine_writes(
    kind: str, rows: int, tokens: int
) -> None:
    model, source = MODELS[kind], random.Random(rows)
    requests = [
        replace(each, salt=source.choice("aab"), group=source.choice(["1", "2", "3"]))
        for each in some_requests(rows, 14)
    ]
    expected = answer(Engine(model, tokenizer=TOKENIZER), requests)
    scheduler, put_back = small(model, tokens, rows), 0
    plain = scheduler._put_back

    def counted(reply: object) -> None:
        nonlocal put_back
        put_back += 1
        plain(reply)  # type: ignore[arg-type]

    scheduler._put_back = counted  # type: ignore[method-assign]
    assert_equal(serve(scheduler, requests, seed=rows), expected)
    assert put_back or kind == "dynamic"  # whose replies never make room


def test_a_newcomer_gets_a_row_at_once() -> None:
    scheduler = small(rows=8, tokens=4000)
    for number in range(40):
        scheduler.submit(request("greedy", "one", samples=4))
        assert number or scheduler.step()
    for _ in range(20):
        scheduler.step()
    assert scheduler.active == 8  # alone it may use everything
    for owner in ("ann", "bob", "carl"):
        assert steps_until_first_token(scheduler, request(owner, "x")) <= 3
    assert {reply.key[0] for reply in scheduler._decoding} == {"greedy", "ann", "bob", "carl"}


def test_pages_are_shared_too() -> None:
    scheduler = small(rows=64, tokens=1000)  # three replies of 300 tokens fill it
    for _ in range(40):
        scheduler.submit(request("greedy", "one"))
    for _ in range(20):
        scheduler.step()
    assert scheduler.active == 3
    assert steps_until_first_token(scheduler, request("ann", "x")) <= 3


def test_requests_of_one_owner_share_likewise() -> None:
    scheduler = small(rows=8)
    for _ in range(10):
        scheduler.submit(request("", "one", samples=8))
    for _ in range(20):
        scheduler.step()
    assert steps_until_first_token(scheduler, request("", "two")) <= 3


def test_one_row_is_shared_in_time() -> None:
    scheduler = small(rows=1)
    greedy = [scheduler.submit(request("greedy", "one")) for _ in range(3)]
    scheduler.step()
    assert steps_until_first_token(scheduler, request("ann", "x", tokens=300)) <= QUANTUM + 3
    written = [0] * 4
    for _ in range(3 * QUANTUM):
        for event in scheduler.step():
            if isinstance(event, TokenEvent):
                written[event.request] += 1
    assert written[greedy[0]] >= QUANTUM / 2  # both go on, in turn


def test_a_long_prompt_of_one_owner_does_not_delay_anothers() -> None:
    scheduler = small(rows=16, tokens=8000)
    for _ in range(12):
        long = request("greedy", "one")
        scheduler.submit(replace(long, prompt=tokens_of(SOURCE, 390)))
    scheduler.step()
    assert steps_until_first_token(scheduler, request("ann", "x")) <= 2


def test_every_request_is_admitted_once_and_ends() -> None:
    scheduler, events = small(rows=4, tokens=900), list[Event]()
    for number in range(12):
        owner = "greedy" if number % 3 else f"other {number}"
        scheduler.submit(request(owner, str(number % 4), tokens=60, samples=1 + number % 3))
        events += scheduler.step()
    events += run(scheduler)
    assert sorted(e.request for e in events if isinstance(e, Admitted)) == list(range(12))
    ends = [e for e in events if isinstance(e, TokenEvent) and e.finish]
    assert len(ends) == sum(1 + number % 3 for number in range(12))


def test_a_cancelled_request_leaves_nothing_in_the_queue() -> None:
    scheduler = small(rows=4)
    greedy = scheduler.submit(request("greedy", "one", samples=4))
    for _ in range(5):
        scheduler.step()
    scheduler.submit(request("ann", "x"))
    scheduler.step()
    assert len(scheduler._waiting) == 1  # a reply that made room
    scheduler.cancel(greedy)
    assert not scheduler._waiting
    run(scheduler)
    assert not scheduler.busy
    assert MODEL is scheduler.model
