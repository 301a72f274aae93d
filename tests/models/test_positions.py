"""Positions against their formulas, and the stretched rotary ones against transformers."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch

from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.positions import (
    RotaryPositions,
    SinusoidalPositions,
    dynamic_frequencies,
    rotate,
    scaled_frequencies,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def test_sinusoidal_positions_are_the_formulas() -> None:
    positions = torch.tensor([[0, 3, 700]])
    found = SinusoidalPositions(10)(positions)
    for column, position in enumerate(positions[0].tolist()):
        for i in range(5):
            angle = position / 10_000 ** (2 * i / 10)
            assert found[0, column, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert found[0, column, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


def test_turned_queries_and_keys_know_their_distance_only() -> None:
    config = ModelConfig(width=32, heads=2, positions="rotary")
    rotary = RotaryPositions(config)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(query_place: int, key_place: int) -> float:
        one = rotate(query, rotary(torch.tensor([[query_place]])))
        return float((one * rotate(key, rotary(torch.tensor([[key_place]])))).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
    assert score(7, 7) == pytest.approx(float((query * key).sum()), abs=1e-5)


def test_rotation_turns_a_dimension_with_that_half_a_head_away() -> None:
    rotary = RotaryPositions(ModelConfig(width=4, heads=1, positions="rotary", rope_theta=100.0))
    x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    turned = rotate(x, rotary(torch.tensor([[2]])))[0, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([math.cos(2), 0.0, math.sin(2), 0.0]))


SCALINGS: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "none": (RopeScaling(), {"rope_type": "default"}),
    "linear": (RopeScaling("linear", 3.0), {"rope_type": "linear", "factor": 3.0}),
    "llama3": (
        RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "yarn": (
        RopeScaling("yarn", 4.0, 128),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "yarn, all settings": (
        RopeScaling(
            "yarn", 4.0, 96, beta_fast=20, beta_slow=2, attention_factor=1.3, truncate=False
        ),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 96,
            "beta_fast": 20,
            "beta_slow": 2,
            "attention_factor": 1.3,
            "truncate": False,
        },
    ),
}


def peers_config(settings: dict[str, Any], context: int) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle")
    return transformers.LlamaConfig(
        hidden_size=96,
        num_attention_heads=3,
        max_position_embeddings=context,
        rope_parameters={"rope_theta": 20_000.0, **settings},
    )


@pytest.mark.parametrize("name", SCALINGS)
def test_stretched_frequencies_are_those_of_transformers(name: str) -> None:
    scaling, settings = SCALINGS[name]
    peer = peers_config(settings, 512)
    found, magnitude = scaled_frequencies(32, 20_000.0, scaling)
    if name == "none":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        expected, their_magnitude = LlamaRotaryEmbedding.compute_default_rope_parameters(peer)
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        expected, their_magnitude = ROPE_INIT_FUNCTIONS[settings["rope_type"]](peer)
        plain, _ = scaled_frequencies(32, 20_000.0, RopeScaling())
        assert (found < 0.9 * plain).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert magnitude == pytest.approx(their_magnitude)


@pytest.mark.parametrize("length", [40, 128, 129, 300])
def test_dynamic_frequencies_are_those_of_transformers(length: int) -> None:
    peer = peers_config({"rope_type": "dynamic", "factor": 4.0}, 128)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](peer, seq_len=length)
    scaling = RopeScaling("dynamic", 4.0, 128)
    positions = torch.stack([torch.arange(length), torch.zeros(length, dtype=torch.long)])
    found = dynamic_frequencies(32, 20_000.0, scaling, positions)
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=0)
    plain, _ = scaled_frequencies(32, 20_000.0, RopeScaling())
    torch.testing.assert_close(found[1, 0], plain, rtol=1e-5, atol=0)
