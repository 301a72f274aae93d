"""Published shapes by name, from GPT-1 to Llama and BERT, and four for a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lmsmith.models.config import ModelConfig

GPT2_VOCABULARY = 50_257

GPT3_WINDOW = 256
"""Brown et al. 2020 do not give the width of the band; this is GPT-Neo's."""


@dataclass(frozen=True)
class Preset:
    """A shape and its source."""

    config: ModelConfig
    source: str


def gpt1(layers: int, width: int, heads: int, context: int, vocabulary_size: int) -> ModelConfig:
    """Post-norm, learned positions, GELU in its tanh form, dropout 0.1 (Radford et al. 2018)."""
    sizes = (layers, width, heads, context, vocabulary_size)
    return ModelConfig(*sizes, dropout=0.1, norm_position="post")


def gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    """Pre-norm and a final norm, context 1,024 (Radford et al. 2019, section 2.3)."""
    return ModelConfig(layers, width, heads, 1024, GPT2_VOCABULARY)


def gpt3(layers: int, width: int, heads: int, head_width: int) -> ModelConfig:
    """GPT-2 with dense and banded layers in turn (Brown et al. 2020, section 2.1)."""
    return ModelConfig(
        layers,
        width,
        heads,
        2048,
        GPT2_VOCABULARY,
        head_width=head_width,
        attention_pattern=("dense", "banded"),
        window=GPT3_WINDOW,
    )


def llama(
    layers: int, width: int, heads: int, kv_heads: int, ffn_width: int, context: int
) -> ModelConfig:
    """RMSNorm, rotary positions, SwiGLU, grouped queries, no biases (Touvron et al. 2023)."""
    return ModelConfig(
        layers,
        width,
        heads,
        context,
        ffn_width=ffn_width,
        kv_heads=kv_heads,
        norm="rms",
        positions="rotary",
        activation="swiglu",
        qkv_bias=False,
        attention_output_bias=False,
        ffn_bias=False,
    )


def bert(layers: int, width: int, heads: int, context: int, vocabulary_size: int) -> ModelConfig:
    """Post-norm encoder, segments, exact GELU, dropout 0.1 (Devlin et al. 2018, section 3)."""
    return ModelConfig(
        layers,
        width,
        heads,
        context,
        vocabulary_size,
        dropout=0.1,
        norm_position="post",
        norm_epsilon=1e-12,
        activation="gelu",
        causal=False,
        segments=2,
        embedding_norm=True,
        pooler=True,
    )


def transformer(
    layers: int, width: int, heads: int, ffn_width: int = 0, dropout: float = 0.1
) -> ModelConfig:
    """Blocks of each side of the Transformer: post-norm, sinusoidal positions, ReLU (Vaswani et al.
    2017, section 3). The paper names no longest sentence; 512 is Marian's."""
    return ModelConfig(
        layers,
        width,
        heads,
        context=512,
        ffn_width=ffn_width,
        dropout=dropout,
        norm_position="post",
        positions="sinusoidal",
        activation="relu",
    )


_GPT1, _GPT2 = "Radford et al. 2018", "Radford et al. 2019, table 2"
_GPT3, _LAPTOP = "Brown et al. 2020, table 2.1", "for a laptop"
_BERT = "Devlin et al. 2018, section 3"

PRESETS: Mapping[str, Preset] = {
    "gpt1": Preset(gpt1(12, 768, 12, 512, 40_478), _GPT1),
    "gpt2": Preset(gpt2(12, 768, 12), _GPT2),
    "gpt2-medium": Preset(gpt2(24, 1024, 16), _GPT2),
    "gpt2-large": Preset(gpt2(36, 1280, 20), _GPT2),
    "gpt2-xl": Preset(gpt2(48, 1600, 25), _GPT2),
    "gpt3-125m": Preset(gpt3(12, 768, 12, 64), _GPT3),
    "gpt3-350m": Preset(gpt3(24, 1024, 16, 64), _GPT3),
    "gpt3-760m": Preset(gpt3(24, 1536, 16, 96), _GPT3),
    "gpt3-1.3b": Preset(gpt3(24, 2048, 24, 128), _GPT3),
    "gpt3-2.7b": Preset(gpt3(32, 2560, 32, 80), _GPT3),
    "gpt3-6.7b": Preset(gpt3(32, 4096, 32, 128), _GPT3),
    "gpt3-13b": Preset(gpt3(40, 5140, 40, 128), _GPT3),
    "gpt3-175b": Preset(gpt3(96, 12_288, 96, 128), _GPT3),
    "smollm2-135m": Preset(
        replace(llama(30, 576, 9, 3, 1536, 8192), vocabulary_size=49_152, rope_theta=100_000.0),
        "Allal et al. 2025",
    ),
    "bert-base": Preset(bert(12, 768, 12, 512, 30_522), _BERT),
    "bert-large": Preset(bert(24, 1024, 16, 512, 30_522), _BERT),
    "tiny-gpt1": Preset(gpt1(6, 256, 4, 256, 4096), _LAPTOP),
    "tiny-gpt2": Preset(ModelConfig(6, 256, 4, 256, 4096), _LAPTOP),
    "tiny-llama": Preset(replace(llama(6, 256, 4, 2, 688, 256), vocabulary_size=4096), _LAPTOP),
    "tiny-bert": Preset(bert(6, 256, 4, 128, 4096), _LAPTOP),
}

TRANSFORMER_VOCABULARY = 37_000
"""Shared by English and German: "about 37000 tokens" (section 5.1)."""

_TRANSFORMER = "Vaswani et al. 2017, table 3"

TRANSFORMERS: Mapping[str, Preset] = {
    "transformer-base": Preset(
        replace(transformer(6, 512, 8), vocabulary_size=TRANSFORMER_VOCABULARY), _TRANSFORMER
    ),
    "transformer-big": Preset(
        replace(transformer(6, 1024, 16, dropout=0.3), vocabulary_size=TRANSFORMER_VOCABULARY),
        _TRANSFORMER,
    ),
    "tiny-transformer": Preset(
        replace(transformer(3, 256, 4, 512), vocabulary_size=8000, context=128), _LAPTOP
    ),
}
"""Shapes of each side of an encoder–decoder."""
