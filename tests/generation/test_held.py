"""What the engine holds changes no reply, and is read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder

PREFIX = [(7 * place) % 23 for place in range(70)]
PROMPTS = [[*PREFIX, 1, 2], [*PREFIX, 5], [3, 4], [*PREFIX], [*PREFIX[:-1], 9, 9]]


def decoder_of(**options: Any) -> Decoder:
    config = ModelConfig(
        layers=2, width=16, heads=2, context=128, vocabulary_size=23, **options
    )  # fmt: skip
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return decoder


@pytest.mark.parametrize(
    "options", [{}, {"attention_pattern": ("dense", "banded"), "window": 20}], ids=["dense", "band"]
)
@pytest.mark.parametrize("samples", [1, 3])
def test_replies_are_those_of_whole_prompts(options: dict[str, Any], samples: int) -> None:
    decoder = decoder_of(**options)
    settings = SamplingSettings(9, 0.8, seed=3, samples=samples)
    requests = [Request(prompt, settings, stream=n) for n, prompt in enumerate(PROMPTS)]
    plain = answer(Engine(decoder), requests)
    engine = Engine(decoder, rows=4)  # not all join together
    engine.cache_prefix(PREFIX)
    for _ in range(2):
        assert answer(engine, requests) == plain
    engine.cache_prefix([3, 4, 5])
    assert answer(engine, requests) == plain
    engine.cache_prefix([])
    assert answer(engine, requests) == plain
    assert engine.scheduler.cache.kv.used_pages == 0


def test_log_probabilities_of_a_prompt_are_of_all_of_it() -> None:
    decoder = decoder_of()
    settings = SamplingSettings(2, 0.0, prompt_log_probs=True)
    engine = Engine(decoder)
    engine.cache_prefix(PREFIX)
    request = Request(PROMPTS[0], settings)
    assert answer(engine, [request]) == answer(Engine(decoder), [request])


def test_what_cannot_be_held() -> None:
    engine = Engine(decoder_of())
    with pytest.raises(UserError, match="fills the context"):
        engine.cache_prefix([1] * 128)
    engine.submit(Request([1, 2], SamplingSettings(4)))
    with pytest.raises(UserError, match="being written"):
        engine.cache_prefix(PREFIX)
