"""The reward model's loss over K-way rankings, and how often it orders a pair as they do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def better_pairs(ranks_bk: Tensor, present_bk: Tensor) -> Tensor:
    """(batch, K, K): True at (w, l) where response w ranks above l; ties and padding are False.

    Args:
        ranks_bk: 1 is best, equal numbers are ties.
        present_bk: False where a prompt has fewer than K responses.
    """
    above = ranks_bk[:, :, None] < ranks_bk[:, None, :]
    return above & present_bk[:, :, None] & present_bk[:, None, :]


def score_differences(scores_bk: Tensor) -> Tensor:
    """(batch, K, K): r_w − r_l at (w, l)."""
    return scores_bk[:, :, None] - scores_bk[:, None, :]


def ranking_losses(scores_bk: Tensor, ranks_bk: Tensor, present_bk: Tensor) -> Tensor:
    """−log σ(r_w − r_l) averaged over the pairs of each prompt: (batch,), float32.

    Ouyang et al. 2022, equation 1, whose 1 / C(K,2) counts the pairs that are not tied, since
    ties are dropped. A prompt without such a pair has the loss 0.
    """
    pairs_bkk = better_pairs(ranks_bk, present_bk)
    # softplus(−x) = −log σ(x), without overflow
    losses_bkk = F.softplus(-score_differences(scores_bk.float())).masked_fill(~pairs_bkk, 0.0)
    return losses_bkk.sum(dim=(1, 2)) / pairs_bkk.sum(dim=(1, 2)).clamp(min=1)


def ranking_loss(scores_bk: Tensor, ranks_bk: Tensor, present_bk: Tensor | None = None) -> Tensor:
    """Mean over prompts of `ranking_losses`; prompts without a pair to learn from do not count.

    Args:
        scores_bk: rewards of K responses a prompt; anything where ``present_bk`` is False.
        ranks_bk: 1 is best, equal numbers are ties.
        present_bk: all True if None.
    """
    present_bk = torch.ones_like(ranks_bk, dtype=torch.bool) if present_bk is None else present_bk
    scores_bk = scores_bk.masked_fill(~present_bk, 0.0)
    counted_b = better_pairs(ranks_bk, present_bk).any(dim=2).any(dim=1)
    return ranking_losses(scores_bk, ranks_bk, present_bk).sum() / counted_b.sum().clamp(min=1)


def correct_pairs(
    scores_bk: Tensor, ranks_bk: Tensor, present_bk: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For each prompt, how many of its pairs the scores order rightly, and how many it has.

    A pair of equal scores counts one half. Ties of ranks are no pairs.

    Returns:
        correct_b (float32) and pairs_b (float32); their sums' ratio is the accuracy.
    """
    present_bk = torch.ones_like(ranks_bk, dtype=torch.bool) if present_bk is None else present_bk
    pairs_bkk = better_pairs(ranks_bk, present_bk)
    differences_bkk = score_differences(scores_bk.float())
    right_bkk = (differences_bkk > 0).float() + 0.5 * (differences_bkk == 0).float()
    correct_b = right_bkk.masked_fill(~pairs_bkk, 0.0).sum(dim=(1, 2))
    return correct_b, pairs_bkk.sum(dim=(1, 2)).float()


def pair_accuracy(scores_bk: Tensor, ranks_bk: Tensor, present_bk: Tensor | None = None) -> float:
    """Share of all pairs that are not tied whose better response has the higher score."""
    correct_b, pairs_b = correct_pairs(scores_bk, ranks_bk, present_bk)
    return float(correct_b.sum() / pairs_b.sum().clamp(min=1))


def pair_differences(
    scores_bk: Tensor, ranks_bk: Tensor, present_bk: Tensor | None = None
) -> Tensor:
    """r_w − r_l of every pair that is not tied, prompt by prompt: (pairs,), float32."""
    present_bk = torch.ones_like(ranks_bk, dtype=torch.bool) if present_bk is None else present_bk
    return score_differences(scores_bk.float())[better_pairs(ranks_bk, present_bk)]
