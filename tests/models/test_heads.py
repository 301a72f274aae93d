"""A scalar model is its decoder's hidden state, a linear head, and a shift."""

from __future__ import annotations

import math

import torch

from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel

CONFIG = ModelConfig(layers=1, width=32, heads=2, context=16, vocabulary_size=20)


def test_values_are_the_heads_less_the_shift() -> None:
    decoder = Decoder(CONFIG)
    decoder.initialise(torch.Generator().manual_seed(0))
    model = ScalarModel(decoder).eval()
    model.initialise_head(torch.Generator().manual_seed(1))
    tokens = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(2))
    model.shift.fill_(0.75)
    with torch.no_grad():
        values = model(tokens)
        expected = decoder(tokens) @ model.head.weight[0] + model.head.bias - 0.75
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert values.dtype == torch.float32
    assert "shift" in model.state_dict()
    assert all(parameter is not model.shift for parameter in model.parameters())


def test_the_head_begins_with_a_tenth_of_one_over_the_root_of_width_and_one() -> None:
    with torch.device("meta"):
        decoder = Decoder(ModelConfig(1, 4096, 2, 4, 4))
    model = ScalarModel(decoder)
    model.initialise_head(torch.Generator().manual_seed(4))
    spread = float(model.head.weight.detach().std()) * 10 * math.sqrt(4097)
    assert abs(spread - 1) < 0.06  # 5 / √(2 · 4096)
    assert float(model.head.bias.detach()) == 0.0


def test_close_rewards_are_no_ties_in_bf16() -> None:
    decoder = Decoder(CONFIG)
    decoder.initialise(torch.Generator().manual_seed(0))
    model = ScalarModel(decoder).eval()
    model.initialise_head(torch.Generator().manual_seed(1))
    tokens = torch.randint(20, (40, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = model(tokens)
    assert values.dtype == torch.float32
    assert len(values.unique()) > 0.95 * values.numel()
