"""Log-probabilities of chosen tokens and of alternatives, against the whole distribution."""

from __future__ import annotations

import math

import pytest
import torch

from lmsmith.generation.log_probabilities import next_token_alternatives, token_choices
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder

CONFIG = ModelConfig(2, 32, 4, 32, 50)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = Decoder(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def distribution(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(torch.tensor([tokens])))[0, -1].double().softmax(-1)


def test_each_choice_is_that_of_the_text_before_it(decoder: Decoder) -> None:
    tokens = torch.randint(50, (12,)).tolist()
    prompt, reply = tokens[:5], tokens[5:]
    choices = token_choices(decoder, prompt, reply, 4)
    assert [choice.token for choice in choices] == reply
    for place, choice in enumerate(choices):
        expected = distribution(decoder, tokens[: 5 + place])
        assert math.exp(choice.log_prob) == pytest.approx(float(expected[choice.token]), rel=1e-4)
        best = expected.topk(4)
        assert [token for token, _ in choice.alternatives] == best.indices.tolist()
        for (_, log_prob), share in zip(choice.alternatives, best.values.tolist(), strict=True):
            assert math.exp(log_prob) == pytest.approx(share, rel=1e-4)
    assert token_choices(decoder, prompt, [], 4) == []


def test_alternatives_are_the_likeliest_next_tokens(decoder: Decoder) -> None:
    tokens = torch.randint(50, (7,)).tolist()
    expected = distribution(decoder, tokens).topk(10)
    found = next_token_alternatives(decoder, tokens, 10)
    assert [token for token, _ in found] == expected.indices.tolist()
    assert [math.exp(p) for _, p in found] == pytest.approx(expected.values.tolist(), rel=1e-4)
    whole = next_token_alternatives(decoder, tokens, 50)
    assert sum(math.exp(p) for _, p in whole) == pytest.approx(1.0, rel=1e-5)
