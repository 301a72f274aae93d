"""The formulas of RLHF against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lmsmith.rlhf.objective import (
    KLController,
    better_pairs,
    clipped_policy_loss,
    clipped_value_loss,
    correct_pairs,
    generalised_advantages,
    masked_mean,
    masked_whiten,
    pair_accuracy,
    pair_differences,
    ranking_loss,
    token_rewards,
    value_mask,
)


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def loss_by_hand(scores: list[float], ranks: list[int]) -> float | None:
    """Equation 1 of Ouyang et al. 2022 as loops; None if all are tied."""
    losses = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        if ranks[i] < ranks[j]:
            losses.append(minus_log_sigmoid(scores[i] - scores[j]))
        elif ranks[i] > ranks[j]:
            losses.append(minus_log_sigmoid(scores[j] - scores[i]))
    return sum(losses) / len(losses) if losses else None


def padded(rows: list[list[float]], fill: float) -> Tensor:
    most = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (most - len(row))] for row in rows], dtype=torch.float64)


def test_two_responses_give_the_pairwise_loss() -> None:
    scores_bk = torch.randn(64, 2)
    ranks_bk = torch.tensor([[1, 2], [2, 1]]).repeat(32, 1)
    winner = torch.where(ranks_bk[:, 0] == 1, scores_bk[:, 0], scores_bk[:, 1])
    loser = torch.where(ranks_bk[:, 0] == 1, scores_bk[:, 1], scores_bk[:, 0])
    torch.testing.assert_close(
        ranking_loss(scores_bk, ranks_bk), -F.logsigmoid(winner - loser).mean()
    )


def test_four_ways_with_ties_by_hand() -> None:
    # ranks 1 2 2 3: pairs (0,1) (0,2) (0,3) (1,3) (2,3); (1,2) is tied and dropped
    scores = [0.5, 0.2, -0.1, 1.0]
    by_hand = (
        minus_log_sigmoid(0.3)
        + minus_log_sigmoid(0.6)
        + minus_log_sigmoid(-0.5)
        + minus_log_sigmoid(-0.8)
        + minus_log_sigmoid(-1.1)
    ) / 5
    ranks_bk = torch.tensor([[1, 2, 2, 3]])
    assert float(ranking_loss(torch.tensor([scores]), ranks_bk)) == pytest.approx(by_hand, rel=1e-6)
    assert int(better_pairs(ranks_bk).sum()) == 5
    assert pair_accuracy(torch.tensor([scores]), ranks_bk) == pytest.approx(2 / 5)


rankings = st.lists(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=6),
    min_size=1,
    max_size=5,
)


@given(rankings)
def test_a_batch_of_different_lengths_equals_loops(
    batch: list[list[tuple[float, int]]],
) -> None:
    scores_bk = padded([[score for score, _ in row] for row in batch], math.nan)
    ranks_bk = padded([[rank for _, rank in row] for row in batch], 0).long()
    by_hand = [loss_by_hand([s for s, _ in row], [r for _, r in row]) for row in batch]
    counted = [loss for loss in by_hand if loss is not None]
    expected = sum(counted) / len(counted) if counted else 0.0
    assert float(ranking_loss(scores_bk, ranks_bk)) == pytest.approx(expected, rel=1e-5)
    each = [float(ranking_loss(scores_bk[[row]], ranks_bk[[row]])) for row in range(len(batch))]
    assert each == pytest.approx([loss or 0.0 for loss in by_hand], rel=1e-5)


def test_each_prompt_weighs_the_same_whatever_its_pairs() -> None:
    scores_bk = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    ranks_bk = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    first = (3 * minus_log_sigmoid(1.0) + 3 * minus_log_sigmoid(0.0)) / 6
    second = minus_log_sigmoid(-1.0)
    assert float(ranking_loss(scores_bk, ranks_bk)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_gradient_is_the_closed_form_and_the_finite_difference() -> None:
    scores_bk = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ranks_bk = torch.tensor([[1, 2, 2, 2], [3, 1, 2, 4], [2, 2, 1, 0]])

    loss = ranking_loss(scores_bk, ranks_bk)
    (gradient_bk,) = torch.autograd.grad(loss, scores_bk)

    # d(−log σ(r_w − r_l))/dr_w = −σ(r_l − r_w), and the opposite for r_l
    pairs = better_pairs(ranks_bk)
    pull = torch.sigmoid(scores_bk[:, None, :] - scores_bk[:, :, None]).where(pairs, 0.0)
    count_b1 = pairs.sum(dim=(1, 2))[:, None]
    closed_bk = (pull.sum(dim=1) - pull.sum(dim=2)) / count_b1 / 3
    torch.testing.assert_close(gradient_bk, closed_bk.detach(), atol=1e-6, rtol=1e-5)
    assert float(gradient_bk[2, 3]) == 0.0

    step = 1e-2  # the loss itself is float32
    for row, column in itertools.product(range(3), range(4)):
        up, down = scores_bk.detach().clone(), scores_bk.detach().clone()
        up[row, column] += step
        down[row, column] -= step
        slope = float(ranking_loss(up, ranks_bk) - ranking_loss(down, ranks_bk)) / (2 * step)
        assert slope == pytest.approx(float(gradient_bk[row, column]), abs=1e-4)


def test_huge_differences_stay_finite() -> None:
    scores_bk = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = ranking_loss(scores_bk, torch.tensor([[1, 2], [1, 2]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(1e4)
    assert scores_bk.grad is not None
    assert bool(scores_bk.grad.isfinite().all())


def test_absent_scores_never_reach_loss_or_gradient() -> None:
    scores_bk = torch.tensor([[1.0, 0.0, math.inf]], requires_grad=True)
    loss = ranking_loss(scores_bk, torch.tensor([[1, 2, 0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(minus_log_sigmoid(1.0))
    assert scores_bk.grad is not None
    assert scores_bk.grad[0].isfinite().all()


def test_accuracy_counts_equal_scores_half_and_pools_pairs() -> None:
    scores_bk = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 9.0]])
    ranks_bk = torch.tensor([[1, 2, 2], [1, 2, 0]])
    correct_b, pairs_b = correct_pairs(scores_bk, ranks_bk)
    assert correct_b.tolist() == [1.5, 0.0]
    assert pairs_b.tolist() == [2.0, 1.0]
    assert pair_accuracy(scores_bk, ranks_bk) == pytest.approx(0.5)
    assert sorted(pair_differences(scores_bk, ranks_bk).tolist()) == [-1.0, 0.0, 1.0]


def test_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    log_probs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [5.0, 5.0, 5.0]])
    reference = torch.tensor([[-2.0, -1.5, 0.0], [-1.0, -3.0, -1.0], [0.0, 0.0, 0.0]])
    rewards, penalties = token_rewards(
        torch.tensor([3.0, -4.0, 7.0]), log_probs, reference, mask, 0.1
    )
    expected = [[-0.1, 0.05, 0.0], [0.0, -0.2, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(penalties, torch.tensor(expected))
    expected = [[-0.1, 0.05, 3.0, 0.0], [0.0, -0.2, 0.0, -4.0], [7.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_score_changes_one_column_of_its_row_and_nothing_else(
    lengths: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    log_probs, reference = (torch.randn(len(lengths), 7, generator=generator) for _ in range(2))
    scores = torch.randn(len(lengths), generator=generator)
    without, penalties = token_rewards(torch.zeros_like(scores), log_probs, reference, mask, 0.3)
    rewards, _ = token_rewards(scores, log_probs, reference, mask, 0.3)
    difference = rewards - without
    for row, length in enumerate(lengths):
        columns = difference[row].nonzero().flatten().tolist()
        assert columns == [length]
        torch.testing.assert_close(difference[row, length], scores[row])
    # The whole return without discount is the score and the penalty of the response's log ratio.
    ratio = ((log_probs - reference) * mask).sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), scores - 0.3 * ratio, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(penalties.sum(dim=1), -0.3 * ratio, rtol=1e-5, atol=1e-5)
    # That column is the last that has a value.
    states = value_mask(mask)
    assert states.sum(dim=1).tolist() == [length + 1 for length in lengths]
    assert states[torch.arange(len(lengths)), torch.tensor(lengths)].all()


def test_the_value_mask_goes_one_past_the_end() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert value_mask(mask).int().tolist() == [[1, 1, 0], [1, 1, 1]]


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


def test_fixed_stays() -> None:
    controller = KLController(0.02)
    for kl in (0.0, 5.0, 1e9):
        controller.update(kl, 512)
    assert controller.coefficient == 0.02


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2), (7.2, 0.2)],
)
def test_adaptive_steps_are_clipped_and_in_proportion(kl: float, error: float) -> None:
    controller = KLController(0.2, "adaptive", target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert controller.coefficient == pytest.approx(0.2 * (1 + error * 512 / 10_000))


def test_adaptive_finds_the_target() -> None:
    """The β that a policy reaches whose KL is 1 / β."""
    controller = KLController(1.0, "adaptive", target=6.0, horizon=1_000)
    for _ in range(400):
        controller.update(1.0 / controller.coefficient, 128)
    assert 1.0 / controller.coefficient == pytest.approx(6.0, rel=0.01)


def test_the_band_doubles_above_and_halves_below() -> None:
    controller = KLController(0.1, "band", low=1.0, high=10.0)
    coefficients = []
    for kl in (10.1, 30.0, 10.0, 5.0, 1.0, 0.9, -1.0):
        controller.update(kl, 64)
        coefficients.append(controller.coefficient)
    assert coefficients == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4, 0.2, 0.1])


def test_its_state_comes_back() -> None:
    controller, other = KLController(0.1, "band", high=1.0), KLController(0.1, "band", high=1.0)
    controller.update(2.0, 1)
    other.load_state_dict(controller.state_dict())
    assert other == controller
