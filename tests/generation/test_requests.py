"""Many requests of different kinds in one batch: each is answered as if it were alone."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.engine import Engine, Request, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import Reply
from lmsmith.generation.settings import SamplingSettings
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

VOCABULARY = 61
BF16 = resolve_machine(MachineConfig(precision="bf16"))


def make_decoder(seed: int, vocabulary: int = VOCABULARY) -> Decoder:
    decoder = Decoder(ModelConfig(2, 32, 4, context=90, vocabulary_size=vocabulary)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            spread = 0.5 if "embedding" in name else 0.3
            parameter.normal_(centre, spread, generator=generator)
    return decoder


DECODER = make_decoder(0)
MODEL = InferenceDecoder(DECODER, BF16)


def random_requests(count: int, seed: int) -> list[Request]:
    chance = random.Random(seed)

    def pick(*choices: float) -> float:
        return chance.choice(choices)

    requests = []
    for _ in range(count):
        settings = SamplingSettings(
            max_new_tokens=chance.randint(1, 25),
            temperature=pick(0, 0.7, 1, 1.3),
            top_k=int(pick(0, 0, 5, 20)),
            top_p=pick(1, 0.9, 0.5),
            min_p=pick(0, 0, 0.05),
            repetition_penalty=pick(1, 1, 1.2),
            presence_penalty=pick(0, 0, 0.4),
            frequency_penalty=pick(0, 0, 0.3),
            logit_bias={3: -math.inf, 4: 1.5} if chance.random() < 0.3 else {},
            stop_tokens=tuple(chance.sample(range(VOCABULARY), 3)),
            seed=chance.randrange(2**40),
            samples=chance.choice([1, 1, 3]),
            top_log_probs=chance.choice([0, 2]),
            prompt_log_probs=chance.random() < 0.3,
        )
        prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 70))]
        requests.append(Request(prompt, settings))
    return requests


def alone(request: Request) -> list[Reply]:
    return answer(Engine(MODEL), [request])[0]


def test_any_company_gives_the_same_tokens_and_log_probabilities() -> None:
    if type(MODEL.kernels).__name__ != "NativeKernels":
        pytest.skip("to the bit with the C++ kernels alone")
    requests = random_requests(14, seed=8)
    engine = Engine(MODEL, rows=9)
    together = answer(engine, requests)
    for request, replies in zip(requests, together, strict=True):
        assert replies == alone(request)
    assert any(reply.prompt_log_probs for replies in together for reply in replies)
    assert len({reply.finish for replies in together for reply in replies}) >= 2


def test_requests_that_join_later_change_nothing() -> None:
    if type(MODEL.kernels).__name__ != "NativeKernels":
        pytest.skip("to the bit with the C++ kernels alone")
    first, second = random_requests(2, seed=4)
    engine = Engine(MODEL)
    numbers = [engine.submit(first)]
    heard: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    steps = 0
    while engine.busy:
        for event in engine.step():
            heard[event.request].append((event.sample, event.token))
        steps += 1
        if steps == 2:
            numbers.append(engine.submit(second))
    for number, request in zip(numbers, (first, second), strict=True):
        for sample, reply in enumerate(alone(request)):
            assert [token for s, token in heard[number] if s == sample] == reply.tokens


def test_a_forbidden_token_never_comes_and_a_favoured_one_always() -> None:
    never = SamplingSettings(60, seed=1, logit_bias=dict.fromkeys(range(1, VOCABULARY), -math.inf))
    always = SamplingSettings(9, seed=1, logit_bias={17: 1000.0})
    replies = answer(Engine(DECODER), [Request([1], never), Request([1], always)])
    assert set(replies[0][0].tokens) == {0}
    assert set(replies[1][0].tokens) == {17}


def test_samples_share_a_prompt_and_have_streams_of_their_own() -> None:
    settings = SamplingSettings(8, seed=3, samples=5)
    replies = answer(Engine(MODEL), [Request([1, 2, 3], settings)])[0]
    assert len({tuple(reply.tokens) for reply in replies}) == 5
    single = SamplingSettings(8, seed=3)
    for stream, reply in enumerate(replies):
        assert answer(Engine(MODEL), [Request([1, 2, 3], single, stream=stream)])[0] == [reply]


def test_a_stop_text_across_tokens() -> None:
    tokenizer = Tokenizer.train(["hello there, how are you? 你好 🙂"] * 4, 290)
    model = InferenceDecoder(make_decoder(1, tokenizer.vocabulary_size))
    settings = SamplingSettings(30, seed=5)
    whole = answer(Engine(model, tokenizer=tokenizer), [Request([1, 2], settings)])[0][0]
    stop = whole.text[5:9]
    assert stop
    again = SamplingSettings(30, seed=5, stop=("never in there", stop))
    cut = answer(Engine(model, tokenizer=tokenizer), [Request([1, 2], again)])[0][0]
    assert cut.text == whole.text.split(stop)[0]
    assert cut.finish == "stop"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]


def test_a_cancelled_request_leaves() -> None:
    engine = Engine(MODEL)
    numbers = [engine.submit(Request([1, 2], SamplingSettings(20, seed=s))) for s in range(3)]
    engine.step()
    engine.cancel(numbers[1])
    heard = []
    while engine.busy:
        heard += [event.request for event in engine.step()]
    assert set(heard) == {numbers[0], numbers[2]}


def test_all_that_is_wrong_is_said_at_once_with_its_requests_name() -> None:
    requests = [
        Request([1], SamplingSettings(top_p=3.0, seed=-1), "the first"),
        Request([], SamplingSettings(stop=("x",)), "the second"),
        Request([1], SamplingSettings(logit_bias={VOCABULARY: 1.0}, stop_tokens=(99,))),
    ]
    with pytest.raises(UserError) as caught:
        answer(Engine(DECODER), requests)
    message = str(caught.value)
    for part in ("the first: top_p = 3", "the first: seed = -1", "the second is empty",
                 "the second: stop", "logit_bias = [61]", "stop_tokens = [99]"):  # fmt: skip
        assert part in message
