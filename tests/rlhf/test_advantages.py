"""Advantages against their definition as a sum, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmsmith.rlhf.advantages import generalised_advantages, masked_mean, masked_whiten

SHAPE = (5, 9)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    lengths = torch.randint(1, 10, (5,), generator=generator).tolist()
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    return rewards, values, mask, lengths


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_equal_to_the_sum_of_its_definition(seed: int, gamma: float, gae_lambda: float) -> None:
    """Â_t = Σ_l (γλ)^l δ_{t+l}, term by term (Schulman et al. 2016, equation 16)."""
    rewards, values, mask, lengths = random_case(seed)
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, gae_lambda)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(length - t))
            assert float(advantages[row, t]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert float(returns[row, t]) == pytest.approx(expected + v[t], rel=1e-4, abs=1e-4)
        assert (advantages[row, length:] == 0).all()
        assert (returns[row, length:] == 0).all()


def test_with_no_discount_and_a_whole_trace_returns_are_sums_of_rewards() -> None:
    rewards, values, mask, _ = random_case(1)
    _, returns = generalised_advantages(rewards, values, mask, 1.0, 1.0)
    left = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, left, rtol=1e-5, atol=1e-5)


def test_without_a_trace_advantages_are_one_steps_errors() -> None:
    rewards, values, mask, _ = random_case(2)
    advantages, _ = generalised_advantages(rewards, values, mask, 0.9, 0.0)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(5, 1)], dim=1)
    torch.testing.assert_close(advantages, (rewards + 0.9 * following - values) * mask)


def test_a_perfect_value_model_leaves_no_advantage() -> None:
    rewards, _, mask, _ = random_case(3)
    values = (rewards * mask).flip(1).cumsum(1).flip(1)
    advantages, _ = generalised_advantages(rewards, values, mask, 1.0, 0.95)
    torch.testing.assert_close(advantages, torch.zeros(SHAPE), rtol=0, atol=1e-5)


def test_padding_has_no_say() -> None:
    rewards, values, mask, _ = random_case(4)
    expected = generalised_advantages(rewards, values, mask, 0.97, 0.9)
    dirty = torch.where(mask, rewards, 1e6), torch.where(mask, values, -1e6)
    found = generalised_advantages(*dirty, mask, 0.97, 0.9)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_whitening_is_over_the_mask_alone() -> None:
    values, _, mask, _ = random_case(5)
    whitened = masked_whiten(values * 7 + 3, mask)
    inside = whitened[mask]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(inside.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    assert (whitened[~mask] == 0).all()
    chosen = values[mask] * 7 + 3
    expected = (chosen - chosen.mean()) / chosen.std(unbiased=False)
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-4)
    dirty = torch.where(mask, values * 7 + 3, 1e6)
    torch.testing.assert_close(masked_whiten(dirty, mask)[mask], inside)
    kept = masked_whiten(values * 7 + 3, mask, shift_mean=False)[mask]
    torch.testing.assert_close(kept, inside + chosen.mean(), rtol=1e-4, atol=1e-4)


def test_equal_values_whiten_to_nothing_and_no_values_to_zero() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(masked_whiten(torch.full((2, 3), 4.0), mask), torch.zeros(2, 3))
    assert masked_mean(torch.ones(2, 3), ~mask).item() == 0.0
    assert masked_mean(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True])) == 5.0
