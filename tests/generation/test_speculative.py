"""Guessing ahead changes how fast tokens come, not which, nor how likely they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import Reply, Request, RunningSequence, TokenEvent
from lmsmith.generation.scheduler import Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import Drafter, DraftModel, PromptLookup
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.tokenizers import Tokenizer
from tiny_models import random_decoder

TOKENIZER = Tokenizer.train(["what is it? it is what it is, I think. 你好 🙂"] * 9, 300)
VOCABULARY = TOKENIZER.vocabulary_size
DENSE = ModelConfig(2, 32, 4, 300, VOCABULARY)
BANDED = replace(DENSE, attention_pattern=("dense", "banded"), window=40)
DYNAMIC = replace(
    DENSE, positions="rotary", rope_scaling=RopeScaling("dynamic", 2.0, original_context=100)
)
MODELS = {
    "dense": InferenceDecoder(random_decoder(DENSE)),
    "banded": InferenceDecoder(random_decoder(BANDED)),
    "dynamic": InferenceDecoder(random_decoder(DYNAMIC)),
}
SMALL = InferenceDecoder(random_decoder(replace(DENSE, layers=1, context=200), seed=5))
REPEATING = (9, 10, 11, 12) * 8
LOOKUP = partial(PromptLookup, shortest=1)


class Wrong:
    """Guesses what is hardly ever right."""

    def guess(self, replies: Sequence[RunningSequence], counts: Sequence[int]) -> list[list[int]]:
        source = random.Random(len(replies[0].tokens) if replies else 0)
        return [[source.randrange(VOCABULARY) for _ in range(count)] for count in counts]

    def forget(self, reply: RunningSequence) -> None:
        pass


def drafter(kind: str, model: InferenceDecoder) -> Drafter:
    drafters: dict[str, Any] = {
        "lookup": LOOKUP,
        "own": lambda: DraftModel(model),
        "small": lambda: DraftModel(SMALL),
        "banded": lambda: DraftModel(MODELS["banded"], tokens=200),
        "wrong": Wrong,
    }
    found: Drafter = drafters[kind]()
    return found


def scheduler(guesser: Drafter | None, model: InferenceDecoder) -> Scheduler:
    memory = 4000 * model.config.cache_bytes_per_token(4)
    return Scheduler(model, TOKENIZER, cache_bytes=memory, rows=6, drafter=guesser)


def serve(made: Scheduler, requests: Sequence[Request], together: int = 3) -> list[list[Reply]]:
    """Replies to requests, of which so many are submitted between two steps."""
    replies, numbers, left = [], dict[int, int](), list(enumerate(requests))
    for request in requests:
        replies.append([Reply() for _ in range(request.settings.samples)])
    while left or made.busy:
        for place, request in left[:together]:
            numbers[made.submit(request)] = place
        del left[:together]
        for event in made.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, TokenEvent):
                replies[numbers[event.request]][event.sample].add(event)
        assert made.cache.kv.used_pages <= made.cache.pages
    return replies


def some_requests(greedy: bool) -> list[Request]:
    """Requests of all kinds; some repeat themselves."""
    source, requests = random.Random(3), []
    for number in range(10):
        prompt = [source.randrange(5, VOCABULARY) for _ in range(source.randint(1, 120))]
        chosen = SamplingSettings(
            source.choice([1, 2, 7, 60]),
            0.0 if greedy else source.choice([0.3, 0.8]),
            top_p=source.choice([1.0, 0.9]),
            seed=number,
            stop_tokens=tuple(range(5 + number, VOCABULARY, 9)),
            stop=source.choice([(), ("is",), ("t i", "nk")]),
            samples=source.choice([1, 1, 2]),
            frequency_penalty=source.choice([0.0, 0.5]),
            repetition_penalty=source.choice([1.0, 1.2]),
            top_log_probs=source.choice([0, 2]),
            prompt_log_probs=number == 4,
        )
        requests.append(Request([*prompt, *(REPEATING if number % 2 else ())], chosen))
    requests.append(Request([7] * 290, SamplingSettings(50, 0.5)))  # the context fills
    return requests


def assert_equal(found: list[list[Reply]], expected: list[list[Reply]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
            pairs = zip(
                (*one.log_probs, *one.prompt_log_probs),
                (*other.log_probs, *other.prompt_log_probs),
                strict=True,
            )
            for a, b in pairs:
                assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
                assert [token for token, _ in a.top] == [token for token, _ in b.top]


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("kind", ["lookup", "own", "small", "banded", "wrong"])
def test_replies_are_those_without_a_draft(kind: str, greedy: bool, together: int) -> None:
    model, requests = MODELS["dense"], some_requests(greedy)
    plain = serve(scheduler(None, model), requests, together)
    guesser = drafter(kind, model)
    made = scheduler(guesser, model)
    assert_equal(serve(made, requests, together), plain)
    assert {reply.finish for replies in plain for reply in replies} >= {"stop", "length", "context"}
    assert made.guessed > 0
    assert (made.accepted == made.guessed) <= (kind == "own")
    made.forget()
    assert made.cache.kv.used_pages == 0
    if isinstance(guesser, DraftModel):
        assert guesser.cache.used_pages == 0


@pytest.mark.parametrize("kind", ["banded", "dynamic"])
def test_windows_and_dynamic_rotation(kind: str) -> None:
    model, requests = MODELS[kind], some_requests(greedy=False)
    made = scheduler(LOOKUP(), model)
    assert_equal(serve(made, requests), serve(scheduler(None, model), requests))
    assert (made.guessed > 0) == (kind == "banded")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_next_turn_reuses_what_was_read(temperature: float) -> None:
    chosen, told = SamplingSettings(30, temperature, seed=2), []
    for guesser in (None, LOOKUP(), DraftModel(SMALL)):
        made = scheduler(guesser, MODELS["dense"])
        prompt = [5, 6, 7, *REPEATING]
        ((first,),) = serve(made, [Request(prompt, chosen)])
        read = made.tokens_read
        turn = [*prompt, *first.tokens, 20, 21]
        ((second,),) = serve(made, [Request(turn, replace(chosen, max_new_tokens=1))])
        told.append((first.tokens, second.tokens, made.tokens_read - read))
    assert told[0] == told[1] == told[2]
    assert told[0][2] == 3  # the last token of the first reply was never read


def test_the_model_as_its_own_draft_is_always_right() -> None:
    made = scheduler(DraftModel(MODELS["dense"]), MODELS["dense"])
    made.submit(Request([5, 6], SamplingSettings(20, 0.0)))
    counts = []
    while made.busy:
        counts.append(len([e for e in made.step() if isinstance(e, TokenEvent)]))
    assert counts == [1, 2, 3, 4, 5, 5]
    assert made.accepted == made.guessed == 14


def test_wrong_guesses_become_few() -> None:
    made = scheduler(Wrong(), MODELS["dense"])
    serve(made, [Request([5, 6], SamplingSettings(40, seed=1))])
    assert made.guessed <= 38 + made.accepted


@pytest.mark.parametrize("kind", ["lookup", "small"])
def test_a_cancelled_request_leaves_nothing(kind: str) -> None:
    guesser = drafter(kind, MODELS["dense"])
    made = scheduler(guesser, MODELS["dense"])
    first = made.submit(Request(REPEATING, SamplingSettings(60, 0.0, samples=2)))
    other = made.submit(Request(REPEATING[1:], SamplingSettings(30, 0.0)))
    for _ in range(5):
        made.step()
    made.cancel(first)
    while made.busy:
        assert {event.request for event in made.step()} == {other}
    made.forget()
    assert made.cache.kv.used_pages == 0
    made.submit(Request(REPEATING, SamplingSettings(60)))
    for _ in range(4):
        made.step()
    made.fail_all(RuntimeError("out of memory"))
    if isinstance(guesser, DraftModel):
        assert guesser.cache.used_pages == 0


def test_a_draft_without_room_guesses_nothing() -> None:
    guesser = DraftModel(SMALL)
    made = scheduler(guesser, MODELS["dense"])
    serve(made, [Request([5] * 199, SamplingSettings(20))])
    assert made.guessed == 0 == guesser.cache.used_pages
    made = scheduler(DraftModel(SMALL, tokens=0), MODELS["dense"])
    serve(made, [Request([5] * 280, SamplingSettings(9)), Request([5, 6], SamplingSettings(9))])
    assert made.guessed > 0


def test_guesses_are_for_few_replies() -> None:
    made = scheduler(LOOKUP(), MODELS["dense"])
    serve(made, [Request(REPEATING, SamplingSettings(9, seed=n)) for n in range(5)], together=5)
    assert made.guessed == 0
    made.submit(Request(REPEATING, SamplingSettings(60, 0.0)))
    for _ in range(12):
        made.step()
    guessed, read = made.guessed, made.tokens_read
    assert guessed > 0
    for number in range(4):
        made.submit(Request([number + 5], SamplingSettings(3)))
    for _ in range(2):
        made.step()
    assert made.guessed <= guessed + 4  # of the step that reads the others' prompts
    assert made.tokens_read == read + made.guessed - guessed + 1 + 4 + 5


def test_a_reply_whose_logits_are_no_numbers_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = InferenceDecoder(random_decoder(DENSE))
    made = scheduler(LOOKUP(), model)
    good = Request(REPEATING, SamplingSettings(20, 0.0))
    bad = Request(REPEATING, SamplingSettings(21, 0.0))
    draw = model.draw

    def fail(logits_bv: torch.Tensor, sequences: Sequence[RunningSequence]) -> list[int]:
        if any(each.tokens_left == 15 and each.settings == bad.settings for each in sequences):
            raise ValueError("not finite")
        return draw(logits_bv, sequences)

    monkeypatch.setattr(model, "draw", fail)
    numbers, events = [made.submit(good), made.submit(bad)], []
    while made.busy:
        events += made.step()
    told = [event for event in events if isinstance(event, TokenEvent)]
    assert [event.request for event in events if isinstance(event, Failed)] == numbers[1:]
    ((plain,),) = serve(scheduler(None, MODELS["dense"]), [good])
    assert [event.token for event in told if event.request == numbers[0]] == plain.tokens
    assert made.accepted > 0
    made.forget()
    assert made.cache.kv.used_pages == 0


def looked_up(text: Sequence[int], count: int, **sizes: int) -> list[int]:
    reply: Any = _Text(tokens=list(text))
    return PromptLookup(**sizes).guess([reply], [count])[0]


class _Text(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_lookup_finds_what_followed_last() -> None:
    assert looked_up([1, 2, 3, 9, 1, 2, 4, 1, 2], 2) == [4, 1]
    assert looked_up([1, 2, 3], 4) == []
    assert looked_up([1, 5, 1], 4) == []
    assert looked_up([1, 5, 1], 4, shortest=1) == [5, 1, 5, 1]
    assert looked_up([3, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert looked_up([6, 6], 3, shortest=1) == [6, 6, 6]


def test_lookup_reads_each_token_once() -> None:
    source = random.Random(0)
    text, lookup = [source.randrange(4) for _ in range(40)], PromptLookup()
    reply: Any = _Text(tokens=[])
    for token in text:
        reply.tokens.append(token)
        assert lookup.guess([reply], [3]) == [looked_up(reply.tokens, 3)]
