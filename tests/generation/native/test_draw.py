"""The draw in C++ is that of `sampling`, against distributions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmsmith.generation.native.operations import NativeKernels
from lmsmith.generation.sampling import choose_tokens, filtered
from lmsmith.generation.settings import SamplingSettings

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 300, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.3, "top_p": 0.6, "min_p": 0.2},
)
EDGE = 1e-5
"""A probability: float32's rounding may put a token on either side of it."""


def fits(logits_v: Tensor, settings: SamplingSettings, uniform: float, token: int) -> bool:
    """Whether the token is the one at ``uniform`` of the exact CDF, or at its edge."""
    exact_v = filtered(logits_v.double()[None], settings)[0].softmax(-1)
    after = float(exact_v[: token + 1].sum())
    return after - float(exact_v[token]) - EDGE <= uniform <= after + EDGE


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [5, 61, 4096, 49_152])
def test_the_token_at_the_place_of_the_cdf(
    kernels: NativeKernels, settings: dict[str, Any], vocabulary: int
) -> None:
    chosen = SamplingSettings(**settings)
    logits_bv = 3 * torch.randn(6, vocabulary)
    logits_bv[0] *= 4  # peaked
    logits_bv[1] *= 0.1  # flat
    logits_bv[2, ::2] = -torch.inf
    uniform_b = torch.rand(6, dtype=torch.float64)
    tokens = kernels.draw(logits_bv, chosen, uniform_b).tolist()
    for row, token in enumerate(tokens):
        if chosen.temperature == 0:
            assert token == int(logits_bv[row].argmax())
        else:
            assert fits(logits_bv[row], chosen, float(uniform_b[row]), token)
    # A row's token depends on that row alone.
    alone = [kernels.draw(logits_bv[i : i + 1], chosen, uniform_b[i : i + 1]) for i in range(6)]
    assert torch.cat(alone).tolist() == tokens


@given(
    st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 3.0, float("-inf")]), min_size=1, max_size=40),
    st.sampled_from([0, 1, 2, 7]),
    st.sampled_from([1.0, 0.9, 0.5, 0.1]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.floats(0, 1, exclude_max=True),
)
def test_equal_logits_are_cut_and_drawn_as_pytorch_does(
    kernels: NativeKernels,
    logits: list[float],
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> None:
    """Ties: of the heaviest the first ones are kept, whichever top-k of PyTorch takes."""
    logits_bv = torch.tensor([[2.0, *logits]])  # something may always be drawn
    settings = SamplingSettings(top_k=top_k, top_p=top_p, min_p=min_p)
    uniform_b = torch.tensor([uniform], dtype=torch.float64)
    token = int(kernels.draw(logits_bv, settings, uniform_b))
    allowed = filtered(logits_bv, settings)[0]
    assert float(logits_bv[0, token]) >= float(allowed[allowed.isfinite()].min())
    if top_k == 0 and top_p == 1.0:
        expected = int(choose_tokens(logits_bv, settings, uniform_b))
        assert token == expected or fits(logits_bv[0], settings, uniform, token)


def test_no_token_of_probability_zero(kernels: NativeKernels) -> None:
    logits_bv = torch.full((1, 100), -torch.inf)
    logits_bv[0, [7, 93]] = torch.tensor([0.0, -90.0])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        uniform_b = torch.tensor([uniform], dtype=torch.float64)
        for settings in (
            SamplingSettings(),
            SamplingSettings(top_p=0.9),
            SamplingSettings(top_k=5),
        ):
            assert int(kernels.draw(logits_bv, settings, uniform_b)) == 7


def test_frequencies_are_the_probabilities(kernels: NativeKernels) -> None:
    """Each token gets its share of 20,000 evenly spread numbers, but for one at either edge."""
    settings = SamplingSettings(temperature=0.8, top_p=0.9)
    logits_v = 1.5 * torch.randn(50)
    count = 20_000
    uniform_b = (torch.arange(count) + torch.rand(count, dtype=torch.float64)) / count
    tokens = kernels.draw(logits_v.expand(count, -1), settings, uniform_b)
    expected_v = count * filtered(logits_v.double()[None], settings)[0].softmax(-1)
    observed_v = torch.bincount(tokens, minlength=50).double()
    assert float((observed_v - expected_v).abs().max()) < 2.1
    assert not observed_v[expected_v == 0].any()
