"""The ranking loss against the pairwise loss, sums by hand, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lmsmith.rlhf.ranking import (
    better_pairs,
    correct_pairs,
    pair_accuracy,
    pair_differences,
    ranking_loss,
    ranking_losses,
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
    assert int(better_pairs(ranks_bk, torch.ones(1, 4, dtype=torch.bool)).sum()) == 5
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
    present_bk = ~scores_bk.isnan()
    by_hand = [loss_by_hand([s for s, _ in row], [r for _, r in row]) for row in batch]
    counted = [loss for loss in by_hand if loss is not None]
    expected = sum(counted) / len(counted) if counted else 0.0
    assert float(ranking_loss(scores_bk, ranks_bk, present_bk)) == pytest.approx(expected, rel=1e-5)
    each = ranking_losses(scores_bk.nan_to_num(), ranks_bk, present_bk).tolist()
    assert each == pytest.approx([loss or 0.0 for loss in by_hand], rel=1e-5)


def test_each_prompt_weighs_the_same_whatever_its_pairs() -> None:
    scores_bk = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    ranks_bk = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    present_bk = torch.tensor([[True] * 4, [True, True, False, False]])
    first = (3 * minus_log_sigmoid(1.0) + 3 * minus_log_sigmoid(0.0)) / 6
    second = minus_log_sigmoid(-1.0)
    assert float(ranking_loss(scores_bk, ranks_bk, present_bk)) == pytest.approx(
        (first + second) / 2, rel=1e-6
    )


def test_gradient_is_the_closed_form_and_the_finite_difference() -> None:
    scores_bk = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ranks_bk = torch.tensor([[1, 2, 2, 2], [3, 1, 2, 4], [2, 2, 1, 9]])
    present_bk = torch.ones(3, 4, dtype=torch.bool)
    present_bk[2, 3] = False

    loss = ranking_loss(scores_bk, ranks_bk, present_bk)
    (gradient_bk,) = torch.autograd.grad(loss, scores_bk)

    # d(−log σ(r_w − r_l))/dr_w = −σ(r_l − r_w), and the opposite for r_l
    pairs = better_pairs(ranks_bk, present_bk)
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
        slope = float(
            ranking_loss(up, ranks_bk, present_bk) - ranking_loss(down, ranks_bk, present_bk)
        ) / (2 * step)
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
    present_bk = torch.tensor([[True, True, False]])
    loss = ranking_loss(scores_bk, torch.tensor([[1, 2, 3]]), present_bk)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(minus_log_sigmoid(1.0))
    assert scores_bk.grad is not None
    assert scores_bk.grad[0].isfinite().all()


def test_accuracy_counts_equal_scores_half_and_pools_pairs() -> None:
    scores_bk = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 9.0]])
    ranks_bk = torch.tensor([[1, 2, 2], [1, 2, 0]])
    present_bk = torch.tensor([[True, True, True], [True, True, False]])
    correct_b, pairs_b = correct_pairs(scores_bk, ranks_bk, present_bk)
    assert correct_b.tolist() == [1.5, 0.0]
    assert pairs_b.tolist() == [2.0, 1.0]
    assert pair_accuracy(scores_bk, ranks_bk, present_bk) == pytest.approx(0.5)
    assert sorted(pair_differences(scores_bk, ranks_bk, present_bk).tolist()) == [-1.0, 0.0, 1.0]
