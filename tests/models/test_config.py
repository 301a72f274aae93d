"""What a shape implies, against the module it describes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.core.config import decode, problems_in
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.models.attention import SelfAttention
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from lmsmith.training.losses import linear_cross_entropy_sum

GPT2_SMALL = ModelConfig(layers=12, width=768, heads=12, context=1024, vocabulary_size=50_257)

shapes = st.builds(
    lambda shared, group, pairs, **others: ModelConfig(
        heads=shared * group, kv_heads=shared, head_width=2 * pairs, window=3, **others
    ),
    layers=st.integers(1, 3),
    width=st.sampled_from([6, 16]),
    shared=st.integers(1, 3),
    group=st.integers(1, 3),
    pairs=st.integers(1, 3),
    context=st.integers(1, 20),
    vocabulary_size=st.integers(1, 50),
    ffn_width=st.integers(0, 40),
    norm_position=st.sampled_from(["pre", "post"]),
    norm=st.sampled_from(["layer", "rms"]),
    positions=st.sampled_from(["learned", "sinusoidal", "rotary"]),
    activation=st.sampled_from(["gelu_tanh", "gelu", "relu", "swiglu"]),
    qkv_bias=st.booleans(),
    attention_output_bias=st.booleans(),
    ffn_bias=st.booleans(),
    tied_embeddings=st.booleans(),
    attention_pattern=st.sampled_from(
        [("banded",), ("dense", "banded"), ("dense", "dense", "banded")]
    ),
)


def module_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def held_bytes(cache: PagedCache) -> int:
    """Bytes of the pages that rows have."""
    return sum(
        sum(users > 0 for users in pool.users) * part[:, 0].numel() * part.element_size()
        for pool in cache._pools
        for part in (pool.keys, pool.values)
    )


@settings(max_examples=40)
@given(shapes)
def test_the_formulas_count_the_modules_parameters_and_the_caches_bytes(
    config: ModelConfig,
) -> None:
    assert problems_in(config) == []
    assert config.parameters == module_parameters(config)
    for tokens in (2, 7):
        cache = PagedCache(
            replace(config, context=7), rows=3, pages=1, dtype=torch.bfloat16, page=1
        )
        for row in (cache.open(), cache.open(), cache.open()):
            for _ in range(tokens):
                cache.extend(row, 1)
        assert held_bytes(cache) == 3 * config.cache_bytes(tokens)
    assert config.cache_bytes(1) == config.cache_bytes_per_token()


def test_the_first_seven_settings_keep_their_places_and_old_files_can_be_read() -> None:
    old = {"layers": 2, "width": 16, "heads": 2, "context": 12, "vocabulary_size": 270}
    old |= {"ffn_width": 40, "dropout": 0}
    config, problems = decode(ModelConfig, old, "config.json")
    assert problems == []
    assert config == ModelConfig(2, 16, 2, 12, 270, 40, 0.0)
    full = ModelConfig(
        2, 16, 2, 12, positions="rotary", rope_scaling=RopeScaling("linear", 2.0),
        attention_pattern=("dense", "banded"), window=4,
    )  # fmt: skip
    again, problems = decode(ModelConfig, json.loads(json.dumps(asdict(full))), "config.json")
    assert problems == []
    assert again == full


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


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"head_width": 6},
        {"activation": "swiglu", "ffn_width": 40, "kv_heads": 1, "positions": "rotary"},
        {"tied_embeddings": False, "norm_position": "post"},
    ],
)
def test_training_flops_are_what_torch_counts_but_for_the_masked_half_of_attention(
    others: dict[str, Any],
) -> None:
    config = ModelConfig(layers=3, width=16, heads=2, context=24, vocabulary_size=50, **others)
    decoder = Decoder(config)
    for module in decoder.modules():
        if isinstance(module, SelfAttention):
            module.explicit = True  # torch counts no operations of the fused kernel on a CPU
    tokens = torch.randint(50, (2, 24))
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy_sum(decoder(tokens), decoder.unembedding_weight, tokens)
        loss.backward()
    query_width = config.heads * config.width_per_head
    attention_per_token = 12 * config.layers * query_width * config.context
    assert counter.get_total_flops() == pytest.approx(
        tokens.numel() * (config.training_flops_per_token() + attention_per_token / 2)
    )
    assert config.training_flops_per_token(12) < config.training_flops_per_token()


def test_a_banded_layer_trains_on_what_its_window_sees() -> None:
    dense = ModelConfig(layers=4, width=16, heads=2, context=400, vocabulary_size=50)
    banded = replace(dense, attention_pattern=("dense", "banded"), window=10)
    exact = sum(min(place + 1, 10) for place in range(400)) / 400
    saved = 12 * 2 * 16 * (200 - exact)
    found = dense.training_flops_per_token() - banded.training_flops_per_token()
    assert found == pytest.approx(saved, rel=0.01)
    # A window as long as the sequence is no window.
    assert banded.training_flops_per_token(10) == dense.training_flops_per_token(10)


def test_contradictions_are_all_named() -> None:
    config = ModelConfig(layers=0, width=10, heads=3, context=0, ffn_width=-1, dropout=1.0)
    assert [each.key for each in problems_in(config)] == [
        "layers",
        "context",
        "ffn_width",
        "dropout",
        "heads",
    ]
    assert problems_in(ModelConfig()) == problems_in(GPT2_SMALL) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_width": -1}, "head_width"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"positions": "rotary", "rope_theta": -1.0}, "rope_theta"),
        ({"positions": "rotary", "head_width": 5}, "head_width"),
        ({"positions": "sinusoidal", "width": 15, "head_width": 4}, "width"),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, "rope_scaling.method"),
        (
            {"positions": "rotary", "rope_scaling": RopeScaling("yarn", 2.0, 9_999)},
            "rope_scaling.original_context",
        ),
        (
            {"positions": "rotary", "rope_scaling": RopeScaling("linear", 0.5)},
            "rope_scaling.factor",
        ),
        (
            {"positions": "rotary", "rope_scaling": RopeScaling("llama3", 2.0, 64, 4.0, 4.0)},
            "rope_scaling.low_frequency_factor",
        ),
        ({"attention_pattern": ("banded",)}, "window"),
        ({"window": 4}, "window"),
        ({"attention_pattern": ()}, "attention_pattern"),
    ],
)
def test_each_contradiction_is_named(settings: dict[str, Any], key: str) -> None:
    assert [each.key for each in problems_in(ModelConfig(**settings))] == [key]
