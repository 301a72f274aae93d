"""What a shape implies, against the module it describes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.models.attention import KeyValueCache, SelfAttention
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training.losses import linear_cross_entropy_sum

GPT2_SMALL = ModelConfig(layers=12, width=768, heads=12, context=1024, vocabulary_size=50_257)

shapes = st.builds(
    lambda layers, heads, head_width, context, vocabulary, inner: ModelConfig(
        layers, heads * head_width, heads, context, vocabulary, inner
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(1, 50),
    st.integers(0, 40),
)


def module_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


@settings(max_examples=10)
@given(shapes)
def test_the_formula_counts_the_modules_parameters(config: ModelConfig) -> None:
    assert config.parameters == module_parameters(config)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "parameters"),
    [
        (12, 768, 12, 124_439_808),
        (24, 1024, 16, 354_823_168),
        (36, 1280, 20, 774_030_080),
        (48, 1600, 25, 1_557_611_200),
    ],
)
def test_gpt2s_sizes(layers: int, width: int, heads: int, parameters: int) -> None:
    config = ModelConfig(layers, width, heads, 1024, 50_257)
    assert config.parameters == parameters == module_parameters(config)


def test_training_flops_are_what_torch_counts_but_for_the_masked_half_of_attention() -> None:
    config = ModelConfig(layers=3, width=16, heads=2, context=24, vocabulary_size=50)
    decoder = Decoder(config)
    for module in decoder.modules():
        if isinstance(module, SelfAttention):
            module.explicit = True  # torch counts no operations of the fused kernel on a CPU
    tokens = torch.randint(50, (2, 24))
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy_sum(decoder(tokens), decoder.token_embedding.weight, tokens)
        loss.backward()
    attention_per_token = 12 * config.layers * config.width * config.context
    assert counter.get_total_flops() == pytest.approx(
        tokens.numel() * (config.training_flops_per_token() + attention_per_token / 2)
    )
    assert config.training_flops_per_token(12) < config.training_flops_per_token()


def test_cache_bytes_are_those_of_the_cache() -> None:
    config = ModelConfig(layers=3, width=16, heads=2, context=24, vocabulary_size=50)
    cache = KeyValueCache(config, batch=5, capacity=7, dtype=torch.bfloat16)
    held = sum(t.numel() * t.element_size() for t in [*cache.keys, *cache.values])
    assert held == 5 * 7 * config.cache_bytes_per_token(2)


def test_contradictions_are_all_named() -> None:
    config = ModelConfig(layers=0, width=10, heads=3, context=0, feed_forward=-1, dropout=1.0)
    assert [key for key, *_ in config.check()] == [
        "layers",
        "context",
        "feed_forward",
        "heads",
        "dropout",
    ]
    assert ModelConfig().check() == GPT2_SMALL.check() == []
