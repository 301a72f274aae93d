"""Small decoders that between them have every part a configuration can choose."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder

GPT2 = ModelConfig(layers=3, width=24, heads=3, context=32, vocabulary_size=41)

LLAMA = replace(
    GPT2,
    heads=4,
    kv_heads=2,
    head_width=6,
    norm="rms",
    positions="rotary",
    activation="swiglu",
    qkv_bias=False,
    attention_output_bias=False,
    ffn_bias=False,
)

STYLES = {
    "gpt1": replace(GPT2, norm_position="post"),
    "gpt3": replace(GPT2, attention_pattern=("dense", "banded"), window=5, head_width=10),
    "banded llama": replace(LLAMA, attention_pattern=("banded", "dense"), window=4),
    "llama": LLAMA,
    "llama, stretched": replace(LLAMA, rope_scaling=RopeScaling("llama3", 8.0, 8)),
    "one shared head, untied": replace(LLAMA, kv_heads=1, tied_embeddings=False),
    "sinusoidal, relu": replace(GPT2, positions="sinusoidal", activation="relu"),
    "exact gelu, some biases": replace(GPT2, activation="gelu", qkv_bias=False),
}


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that every hidden state depends on all that it may see."""
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return decoder
