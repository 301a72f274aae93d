"""Models of the tests of vLLM, how their servers are started, and what their replies must be."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lmsmith.core.recipe import GenerationConfig
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.vllm import VLLMModel
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder

SETTINGS = GenerationConfig(
    engine="vllm", vllm_memory=0.08, vllm_requests=64, vllm_options=("--enforce-eager",)
)
"""Compiling takes half a minute, and tiny models gain nothing from it."""

ADAPTER = AdapterConfig(rank=4, alpha=8.0)
TOKENIZER = Tokenizer.train(TEXTS, 300)

# Heads of 32 channels: vLLM's kernels for processors have none that are smaller.
SHAPES = {
    "gpt2": ModelConfig(2, 64, 2, 128, TOKENIZER.vocabulary_size),
    "llama": ModelConfig(
        2, 64, 2, 128, TOKENIZER.vocabulary_size, kv_heads=1, norm="rms", positions="rotary",
        activation="swiglu", qkv_bias=False, attention_output_bias=False, ffn_bias=False,
    ),
}  # fmt: skip


@dataclass
class Kind:
    """A kind of model: one that the server began with, and the server."""

    name: str
    decoder: Decoder
    model: VLLMModel

    def brought(self, seed: int) -> Decoder:
        """A decoder whose weights the server has now."""
        decoder = random_decoder(self.decoder.config, seed)
        self.model.bring(decoder)
        return decoder

    @property
    def url(self) -> str:
        return self.model.server.url


TIE = 1e-3
"""Nats between the two likeliest tokens below which rounding may choose."""

PROMPTS = [[0, 40 + row, 60, 61 + row % 7, *range(70, 70 + 3 * row)] for row in range(12)]


def replies_of(
    model: VLLMModel | Decoder, prompts: list[list[int]] = PROMPTS, top: int = 0
) -> list[list[tuple[int, float, float]]]:
    """Greedy replies: (token, log-probability, lead over the next likeliest; 0 if not asked)."""
    settings = SamplingSettings(24, temperature=0, log_probs=True, top_log_probs=top)
    found = answer(Engine(model), [Request(prompt, settings) for prompt in prompts])
    return [
        [
            (each.token, each.log_prob, each.top[0][1] - each.top[1][1] if top else 0.0)
            for each in reply.log_probs
        ]
        for (reply,) in found
    ]


def assert_equal(model: VLLMModel, decoder: Decoder, prompts: list[list[int]] = PROMPTS) -> int:
    """Tokens and log-probabilities are equal up to the first near-tie; returns tokens compared."""
    compared = 0
    for theirs, ours in zip(
        replies_of(model, prompts), replies_of(decoder, prompts, 2), strict=True
    ):
        for (token, log_prob, _), (own, own_log_prob, lead) in zip(theirs, ours, strict=True):
            if token != own:
                assert lead < TIE
                break
            assert log_prob == pytest.approx(own_log_prob, abs=1e-4)
            compared += 1
    return compared
