"""Those that come and go get what the engine would write; memory is kept; what fails is alone."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation import scheduler as module
from lmsmith.generation.engine import Engine, InferenceDecoder, SamplingSettings, answer
from lmsmith.generation.inference import Span
from lmsmith.generation.kv_cache import PAGE, PagedCache
from lmsmith.generation.requests import Reply, Request, TokenEvent
from lmsmith.generation.scheduler import Admitted, Event, Failed, Scheduler
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.tokenizers import Tokenizer
from tiny_models import random_decoder

TOKENIZER = Tokenizer.train(["what is it? it is what it is, I think. 你好 🙂"] * 9, 300)
VOCABULARY = TOKENIZER.vocabulary_size
DENSE = ModelConfig(2, 32, 4, 400, VOCABULARY)
BANDED = replace(DENSE, attention_pattern=("dense", "banded"), window=40)
DYNAMIC = replace(
    DENSE, positions="rotary", rope_scaling=RopeScaling("dynamic", 2.0, original_context=100)
)


MODELS = {
    "dense": InferenceDecoder(random_decoder(DENSE)),
    "banded": InferenceDecoder(random_decoder(BANDED)),
    "dynamic": InferenceDecoder(random_decoder(DYNAMIC)),
}
MODEL = MODELS["dense"]


def tokens_of(source: random.Random, count: int) -> list[int]:
    return [source.randrange(5, VOCABULARY) for _ in range(count)]


def some_requests(seed: int, count: int) -> list[Request]:
    """Requests of all kinds, several of which begin in the same way."""
    source = random.Random(seed)
    opening = tokens_of(source, 90)
    requests = []
    for number in range(count):
        prompt = opening[: source.choice([0, 20, 90])] + tokens_of(source, source.randint(1, 180))
        sampling = SamplingSettings(
            max_new_tokens=source.randint(1, 40),
            temperature=source.choice([0.0, 0.7, 1.0]),
            top_p=source.choice([1.0, 0.9]),
            seed=number,
            stop_tokens=tuple(tokens_of(source, 3)),
            stop=source.choice([(), ("is",), ("t i", "nk")]),
            samples=source.choice([1, 1, 3]),
            frequency_penalty=source.choice([0.0, 0.5]),
            top_log_probs=source.choice([0, 2]),
            prompt_log_probs=source.random() < 0.2,
        )
        requests.append(Request(prompt, sampling, stream=10 * number))
    return requests


def small(model: InferenceDecoder = MODEL, tokens: int = 4000, rows: int = 8) -> Scheduler:
    bytes_per_token = model.config.cache_bytes_per_token(model.dtype.itemsize)
    return Scheduler(model, TOKENIZER, cache_bytes=tokens * bytes_per_token, rows=rows)


def collect(events: Sequence[Event], requests: Sequence[Request]) -> list[list[Reply]]:
    """Replies of requests that were submitted in this order to a new scheduler."""
    replies = [[Reply() for _ in range(request.settings.samples)] for request in requests]
    for event in events:
        assert not isinstance(event, Failed), event.error
        if isinstance(event, TokenEvent):
            replies[event.request][event.sample].add(event)
    return replies


def run(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    while scheduler.busy:
        events += scheduler.step()
        assert scheduler.cache.kv.used_pages <= scheduler.cache.pages
        assert scheduler.active <= scheduler.max_rows
    return events


def serve(scheduler: Scheduler, requests: Sequence[Request], seed: int = 0) -> list[list[Reply]]:
    """All replies; the requests come one after another while others are under way."""
    source, events = random.Random(seed), []
    for request in requests:
        scheduler.submit(request)
        for _ in range(source.choice([0, 0, 1, 3, 10])):
            events += scheduler.step()
    return collect(events + run(scheduler), requests)


def assert_equal(found: list[list[Reply]], expected: list[list[Reply]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
            for a, b in zip(one.log_probs, other.log_probs, strict=True):
                assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
                assert [token for token, _ in a.top] == [token for token, _ in b.top]


@pytest.mark.parametrize("kind", ["dense", "banded", "dynamic"])
def test_what_comes_and_goes_is_what_the_engine_writes(kind: str) -> None:
    model, requests = MODELS[kind], some_requests(1, 24)
    expected = answer(Engine(model, tokenizer=TOKENIZER), requests)
    scheduler = small(model, tokens=12_000 if kind == "banded" else 4000)
    assert_equal(serve(scheduler, requests), expected)
    assert {reply.finish for replies in expected for reply in replies} >= {"stop", "length"}


# The same examples every time: in other company sums are rounded otherwise, and once in many
# thousands of draws that decides a token.
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(700, 3000), st.integers(3, 6))
def test_any_company_rows_and_memory(seed: int, tokens: int, rows: int) -> None:
    requests = some_requests(seed, 9)
    expected = answer(Engine(MODEL, tokenizer=TOKENIZER), requests)
    scheduler = small(tokens=max(tokens, 3 * 400), rows=rows)
    assert_equal(serve(scheduler, requests, seed), expected)
    scheduler.forget()
    assert scheduler.cache.kv.used_pages == 0


def test_the_next_turn_reads_what_is_new_only() -> None:
    scheduler = small()
    first = tokens_of(random.Random(0), 150)
    sampling = SamplingSettings(max_new_tokens=20, seed=4)
    scheduler.submit(Request(first, sampling))
    reply = [event.token for event in run(scheduler) if isinstance(event, TokenEvent)]
    turn = [*first, *reply, 7, 8, 9]
    scheduler.submit(Request(turn, sampling))
    events = run(scheduler)
    assert events[0] == Admitted(1, len(first) + len(reply) - 1)  # the last token was never read
    written = [event.token for event in events if isinstance(event, TokenEvent)]
    (alone,) = answer(Engine(MODEL, tokenizer=TOKENIZER), [Request(turn, sampling)])
    assert written == alone[0].tokens
    # The turn before may be written anew, and a conversation that only begins so as well.
    for number, prompt in enumerate([first, [*first[:100], *reply]], start=2):
        scheduler.submit(Request(prompt, sampling))
        events = run(scheduler)
        assert events[0] == Admitted(number, min(len(first) - 1, 100) if number == 3 else 149)
        (alone,) = answer(Engine(MODEL, tokenizer=TOKENIZER), [Request(prompt, sampling)])
        assert [e.token for e in events if isinstance(e, TokenEvent)] == alone[0].tokens


def test_a_long_prompt_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "PREFILL_BESIDE_DECODE", 32)
    scheduler, source = small(), random.Random(0)
    scheduler.submit(Request(tokens_of(source, 5), SamplingSettings(max_new_tokens=40)))
    scheduler.step()
    scheduler.submit(Request(tokens_of(source, 300), SamplingSettings(max_new_tokens=1)))
    scheduler.submit(Request(tokens_of(source, 30), SamplingSettings(max_new_tokens=1)))
    first_token: dict[int, int] = {}
    for step in range(20):
        events = [event for event in scheduler.step() if isinstance(event, TokenEvent)]
        assert any(event.request == 0 for event in events)  # at every step
        for event in events:
            first_token.setdefault(event.request, step)
    assert first_token[2] < 4 < first_token[1]


@pytest.mark.parametrize("kind", ["dense", "banded"])
def test_log_probabilities_of_a_prompt(kind: str) -> None:
    model = MODELS[kind]
    decoder = random_decoder(model.config)
    prompt = tokens_of(random.Random(3), 333)
    scheduler = small(model)
    sampling = SamplingSettings(max_new_tokens=1, prompt_log_probs=True, top_log_probs=3)
    for _ in range(2):  # the second time nothing is reused: every hidden state is needed
        number = scheduler.submit(Request(prompt, sampling))
        (found,) = [event for event in run(scheduler) if isinstance(event, TokenEvent)]
        with torch.no_grad():
            logits_tv = decoder.logits(decoder(torch.tensor([prompt]))[0])
        expected_tv = logits_tv.log_softmax(dim=-1)
        assert found.request == number
        assert [each.token for each in found.prompt_log_probs] == prompt[1:]
        for place, each in enumerate(found.prompt_log_probs):
            assert each.log_prob == pytest.approx(float(expected_tv[place, each.token]), abs=1e-4)
            assert each.top[0][0] == int(expected_tv[place].argmax())


class Poisoned(InferenceDecoder):
    """Fails to read token 6, and gives what is no number for token 7."""

    def read(
        self, spans: Sequence[Span], cache: PagedCache, adapters: Sequence[str] = ()
    ) -> Tensor:
        hidden_nd = super().read(spans, cache, adapters)
        tokens = [token for _, tokens in spans for token in tokens]
        if 6 in tokens:
            raise RuntimeError("poison")
        with torch.inference_mode():
            hidden_nd[torch.tensor(tokens) == 7] = torch.nan
        return hidden_nd


def test_what_fails_fails_alone() -> None:
    source = random.Random(0)
    prompts = [[token for token in tokens_of(source, 50) if token > 7] for _ in range(6)]
    bias = {6: -100.0, 7: -100.0}
    sampling = SamplingSettings(max_new_tokens=12, seed=1, samples=2, logit_bias=bias)
    good = [Request(prompt, sampling) for prompt in prompts]
    expected = answer(Engine(MODEL, tokenizer=TOKENIZER), good)
    bad = [Request([*prompts[0], 6], sampling), Request([*prompts[1][:20], 7], sampling)]
    # One whose replies fail on their way: it must draw token 6.
    later = Request(prompts[2], replace(sampling, logit_bias={6: 1000.0}))
    scheduler = small(Poisoned(random_decoder(DENSE)), rows=20)
    for request in (*good, *bad, later):
        scheduler.submit(request)
    events = run(scheduler)
    failed = {event.request: event.error for event in events if isinstance(event, Failed)}
    assert sorted(failed) == [6, 7, 8]
    assert str(failed[6]) == "poison"
    assert isinstance(failed[7], UserError)
    kept = [event for event in events if isinstance(event, TokenEvent) and event.request < 6]
    assert_equal(collect(kept, good), expected)
    # And what comes after is answered as ever.
    scheduler.submit(good[0])
    after = [event.token for event in run(scheduler) if isinstance(event, TokenEvent)]
    assert sorted(after) == sorted([*expected[0][0].tokens, *expected[0][1].tokens])


def test_cancelled_at_every_stage_leaves_nothing_behind() -> None:
    scheduler, source = small(rows=2), random.Random(1)
    prompts = [tokens_of(source, 300) for _ in range(4)]
    numbers = [
        scheduler.submit(Request(prompt, SamplingSettings(max_new_tokens=50))) for prompt in prompts
    ]
    scheduler.step()
    assert (scheduler.active, len(scheduler._waiting)) == (2, 2)
    for number in (numbers[3], numbers[0], numbers[0], 99):
        scheduler.cancel(number)
    assert (scheduler.active, len(scheduler._waiting)) == (1, 1)
    events = run(scheduler)
    written = {event.request for event in events if isinstance(event, TokenEvent)}
    assert written == {numbers[1], numbers[2]}
    # What was read of a cancelled prompt need not be read again.
    scheduler.submit(Request(prompts[0], SamplingSettings(max_new_tokens=1)))
    (joined,) = [event for event in run(scheduler) if isinstance(event, Admitted)]
    assert joined.cached >= 128


def test_nobody_begins_from_what_was_read_for_another() -> None:
    """Neither from what is being read or written, nor from what is kept, and own turns do."""
    scheduler, prompt = small(rows=4), tokens_of(random.Random(1), 200)
    long, short = SamplingSettings(max_new_tokens=40), SamplingSettings(max_new_tokens=1)
    owner = scheduler.submit(Request(prompt, long, salt="ann"))

    def reused(salt: str, more: int) -> int:
        number = scheduler.submit(Request([*prompt, more], short, salt=salt))
        events = [event for _ in range(4) for event in scheduler.step()]
        (joined,) = [e for e in events if isinstance(e, Admitted) and e.request == number]
        return joined.cached

    for _ in range(4):
        scheduler.step()
    assert scheduler.active == 1  # Ann's reply is being written
    assert (reused("bob", 9), reused("", 9), reused("ann", 9)) == (0, 0, 200)
    scheduler.cancel(owner)
    assert scheduler.active == 0
    assert (reused("cleo", 9), reused("bob", 8), reused("ann", 8)) == (0, 200, 200)
    # Bob's conversation, which begins as Ann's does, is kept beside hers, not in its place.
    assert (reused("ann", 7), reused("bob", 7), reused("dan", 7)) == (200, 200, 0)


def test_fail_all_ends_everything_and_begins_anew() -> None:
    scheduler = small(rows=2)
    request = Request(tokens_of(random.Random(1), 30), SamplingSettings(max_new_tokens=9, seed=3))
    for _ in range(4):
        scheduler.submit(request)
    scheduler.step()
    error = RuntimeError("all over")
    assert scheduler.fail_all(error) == [Failed(number, error) for number in range(4)]
    assert not scheduler.busy
    assert scheduler.cache.kv.used_pages == 0
    scheduler.submit(request)
    (alone,) = answer(Engine(MODEL, tokenizer=TOKENIZER), [request])
    written = [event.token for event in run(scheduler) if isinstance(event, TokenEvent)]
    assert written == alone[0].tokens


def test_what_can_never_fit_is_refused_at_once() -> None:
    scheduler = small(tokens=3 * PAGE, rows=4)
    prompt = tokens_of(random.Random(0), 100)
    with pytest.raises(UserError, match="cache's 192"):
        scheduler.submit(Request(prompt, SamplingSettings(max_new_tokens=93)))
    with pytest.raises(UserError, match="samples = 5"):
        scheduler.submit(Request(prompt, SamplingSettings(max_new_tokens=1, samples=5)))
    with pytest.raises(UserError, match="top_p"):
        scheduler.submit(Request(prompt, SamplingSettings(top_p=7)))
    with pytest.raises(UserError, match="no room for 128 tokens"):
        small(tokens=PAGE)
    scheduler.submit(Request(prompt, SamplingSettings(max_new_tokens=92)))
    run(scheduler)


@pytest.mark.parametrize("name", ["dense", "banded"])  # of dynamic, reading depends on length
def test_forced_replies_are_scored_as_their_prompts_would_be(name: str) -> None:
    """log P of given tokens after a prompt, which all of them read once."""
    source, model = random.Random(5), MODELS[name]
    prompt = tokens_of(source, 150)
    forced = tuple(tuple(tokens_of(source, count)) for count in (1, 4, 2))
    drawn = SamplingSettings(max_new_tokens=4, temperature=0.0, samples=3, log_probs=True)
    scheduler = small(model)
    asked = [Request(prompt, drawn, forced=forced), Request(prompt[:140], drawn, forced=forced)]
    first, second = (scheduler.submit(each) for each in asked)
    replies = collect(run(scheduler), asked)
    for request, each in zip(asked, replies, strict=True):
        for tokens, reply in zip(forced, each, strict=True):
            assert (tuple(reply.tokens), reply.finish) == (tokens, "length")
            whole = SamplingSettings(max_new_tokens=1, prompt_log_probs=True)
            (plain,) = answer(Engine(model), [Request([*request.prompt, *tokens], whole)])[0]
            expected = [found.log_prob for found in plain.prompt_log_probs[-len(tokens) :]]
            assert [p.log_prob for p in reply.log_probs] == pytest.approx(expected, abs=1e-4)
    assert (first, second) == (0, 1)
    # What one has read is there for the next that begins so; not where it asks for that not to be.
    later = scheduler.submit(replace(asked[0], prompt=[*prompt, 7], keep=False))
    joined = [event for event in run(scheduler) if isinstance(event, Admitted)]
    assert [each.request for each in joined] == [later]
    assert name == "banded" or joined[0].cached == 150
    kept = len(scheduler.cache._kept)
    assert kept <= 2
    scheduler.submit(replace(asked[0], prompt=tokens_of(source, 90), keep=False))
    run(scheduler)
    assert len(scheduler.cache._kept) == kept


@pytest.mark.parametrize(
    ("forced", "word"),
    [(((1,),), "for each sample"), (((1,), ()), "none empty"), (((1,), (2,) * 9), "9 tokens"),
     (((1,), (VOCABULARY,)), "does not have")],
)  # fmt: skip
def test_what_cannot_be_forced(forced: tuple[tuple[int, ...], ...], word: str) -> None:
    drawn = SamplingSettings(max_new_tokens=4, samples=2)
    with pytest.raises(UserError, match=word):
        small().submit(Request([5, 6], drawn, forced=forced))


def test_other_threads_may_ask_how_many_are_active() -> None:
    """They read a number: queues that change meanwhile are not walked through."""
    scheduler, source = small(rows=4), random.Random(2)
    failed: list[BaseException] = []
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                assert 0 <= scheduler.active <= 4
        except BaseException as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(40):
            prompts = [tokens_of(source, 40) for _ in range(6)]
            for prompt in prompts:
                scheduler.submit(Request(prompt, SamplingSettings(max_new_tokens=1)))
            run(scheduler)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert failed == []
    assert scheduler.active == 0
