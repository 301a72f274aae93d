"""PPO's losses by hand, and against loops that follow TRL's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmsmith.rlhf.losses import clipped_policy_loss, clipped_value_loss

MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])


def random_table(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


def test_the_surrogate_by_hand() -> None:
    """Ratios 1.5, 0.5 against advantages of both signs, ε = 0.2."""
    new = torch.tensor([[math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)]])
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = clipped_policy_loss(new, torch.zeros(1, 4), advantages, mask, 0.2)
    # min(ρA, clip(ρ)A): 2.4 (clipped), −3, 1, −1.6 (clipped)
    assert found.loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6) / 4)
    assert found.clip_fraction.item() == pytest.approx(0.5)
    assert found.ratio.item() == pytest.approx(1.0)
    expected = 0.5 * (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 2
    assert found.approximate_kl.item() == pytest.approx(expected)


def test_a_clipped_token_has_no_gradient() -> None:
    new = torch.tensor([[math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)]])
    new.requires_grad_()
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    clipped_policy_loss(new, torch.zeros(1, 4), advantages, mask, 0.2).loss.backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([0.0, 1.5 * 2 / 4, -0.5 * 2 / 4, 0.0])


def test_the_policy_loss_equals_a_loop() -> None:
    old, new, advantages = random_table(1), random_table(1) + random_table(2, 0.3), random_table(3)
    losses, clips, squares, ratios = [], [], [], []
    for row, column in MASK.nonzero().tolist():
        ratio = math.exp(float(new[row, column]) - float(old[row, column]))
        advantage = float(advantages[row, column])
        plain = -advantage * ratio
        clipped = -advantage * min(max(ratio, 0.8), 1.2)
        losses.append(max(plain, clipped))
        clips.append(float(clipped > plain))
        squares.append(math.log(ratio) ** 2)
        ratios.append(ratio)
    dirty = torch.where(MASK, new, 50.0), torch.where(MASK, old, -50.0)
    found = clipped_policy_loss(*dirty, advantages * MASK, MASK, 0.2)
    count = len(losses)
    assert found.loss.item() == pytest.approx(sum(losses) / count, rel=1e-5)
    assert found.clip_fraction.item() == pytest.approx(sum(clips) / count)
    assert 0 < sum(clips) < count
    assert found.approximate_kl.item() == pytest.approx(0.5 * sum(squares) / count, rel=1e-5)
    assert found.ratio.item() == pytest.approx(sum(ratios) / count, rel=1e-5)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient() -> None:
    log_probs, advantages = random_table(4), random_table(5)
    leaf = log_probs.clone().requires_grad_()
    found = clipped_policy_loss(leaf, log_probs, advantages, MASK, 0.2)
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, -advantages * MASK / MASK.sum())
    assert (found.ratio.item(), found.clip_fraction.item()) == (1.0, 0.0)


def test_the_value_loss_equals_a_loop() -> None:
    old, returns = random_table(6), random_table(7)
    new = old + random_table(8, 0.4)
    losses, clips = [], []
    for row, column in MASK.nonzero().tolist():
        value, before = float(new[row, column]), float(old[row, column])
        limited = min(max(value, before - 0.2), before + 0.2)
        target = float(returns[row, column])
        losses.append(max((value - target) ** 2, (limited - target) ** 2))
        clips.append(float((limited - target) ** 2 > (value - target) ** 2))
    dirty = torch.where(MASK, new, 1e3)
    loss, clipped = clipped_value_loss(dirty, old, returns, MASK, 0.2)
    assert loss.item() == pytest.approx(0.5 * sum(losses) / len(losses), rel=1e-5)
    assert clipped.item() == pytest.approx(sum(clips) / len(clips))
    assert 0 < sum(clips) < len(clips)


def test_a_value_that_moved_far_towards_its_target_has_no_gradient() -> None:
    values = torch.tensor([[0.5, -0.5, 0.1]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, _ = clipped_value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), mask, 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 1.5**2 + 0.9**2) / 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, -0.5, -0.3])
