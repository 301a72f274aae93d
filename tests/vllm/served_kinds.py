"""Models of the tests of vLLM, and how their servers are started."""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.core.recipe import GenerationConfig
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
