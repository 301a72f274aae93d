"""The formulas of RLHF on one page: ranking loss, token rewards, GAE, PPO losses, KL control.

Functions of tensors alone. Shapes are the suffixes: b prompts, k responses to a prompt, r response
tokens, s states (one more than response tokens). Log-probabilities, entropies and KL are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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


def value_mask(mask_br: Tensor) -> Tensor:
    """The response mask with one more column: the state after the last token has a value too.

    Args:
        mask_br: True where a response token stands (batch, response_length).

    Returns:
        (batch, response_length + 1): column t is the state before token t; the state one past the
        last token, in which the score arrives, is included.
    """
    first = torch.ones_like(mask_br[:, :1])
    return torch.cat([first, mask_br], dim=1)


def token_rewards(
    scores_b: Tensor,
    log_probs_br: Tensor,
    reference_log_probs_br: Tensor,
    mask_br: Tensor,
    kl_coefficient: float,
) -> tuple[Tensor, Tensor]:
    """r(x, y) at the end, −β (log π(y_t) − log π_ref(y_t)) at every token (Ziegler et al. 2019).

    Args:
        scores_b: the reward model's score of each whole response.
        log_probs_br, reference_log_probs_br: of the tokens drawn.
        mask_br: True where a response token stands.
        kl_coefficient: β.

    Returns:
        rewards_bs: (batch, response_length + 1); the score stands in one column, the state right
            after the response's last token, and is nowhere else.
        penalties_br: the KL part alone, 0 on padding.
    """
    penalties_br = -kl_coefficient * (log_probs_br - reference_log_probs_br)
    penalties_br = penalties_br.masked_fill(~mask_br, 0.0)
    rewards_bs = torch.cat([penalties_br, torch.zeros_like(penalties_br[:, :1])], dim=1)
    lengths_b = mask_br.sum(dim=1)
    rewards_bs[torch.arange(len(scores_b)), lengths_b] += scores_b
    return rewards_bs, penalties_br


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places where the mask is true; 0 if there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the mask, and to zero mean if ``shift_mean``; 0 elsewhere.

    The variance is the population's (divided by the count), floored at 1e-8.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance.clamp(min=1e-8))
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def generalised_advantages(
    rewards_bs: Tensor, values_bs: Tensor, mask_bs: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al. 2016, eq. 16): Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γV_{t+1} − V_t.

    Args:
        rewards_bs, values_bs: per state (batch, states).
        mask_bs: True for a row's real states, which come first.
        gamma: γ.
        gae_lambda: λ.

    Returns:
        advantages_bs, and returns_bs = advantages + values; both 0 where the mask is false.
    """
    values_bs = values_bs * mask_bs
    rewards_bs = rewards_bs * mask_bs
    advantages_bs = torch.zeros_like(values_bs)
    running_b = torch.zeros_like(values_bs[:, 0])
    next_value_b = torch.zeros_like(running_b)
    for state in reversed(range(values_bs.shape[1])):
        delta_b = rewards_bs[:, state] + gamma * next_value_b - values_bs[:, state]
        running_b = (delta_b + gamma * gae_lambda * running_b) * mask_bs[:, state]
        advantages_bs[:, state] = running_b
        next_value_b = values_bs[:, state]
    return advantages_bs, advantages_bs + values_bs


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped surrogate and what is watched beside it; all scalars.

    Attributes:
        loss: −E[min(ρA, clip(ρ, 1 ± ε)A)].
        approximate_kl: ½ E[(log π − log π_old)²].
        clip_fraction: share of tokens where the clipped term was the smaller.
        ratio: E[ρ].
    """

    loss: Tensor
    approximate_kl: Tensor
    clip_fraction: Tensor
    ratio: Tensor


def clipped_policy_loss(
    log_probs_br: Tensor,
    old_log_probs_br: Tensor,
    advantages_br: Tensor,
    mask_br: Tensor,
    clip_range: float,
) -> PolicyLoss:
    """ρ = π/π_old per token; the objective takes the worse of ρA and clip(ρ, 1 − ε, 1 + ε)A.

    Args:
        log_probs_br: under the policy being trained; carries the gradient.
        old_log_probs_br: under the policy that drew the tokens.
        advantages_br: Â, whitened or not.
        mask_br: True where a response token stands.
        clip_range: ε.
    """
    difference_br = (log_probs_br - old_log_probs_br).masked_fill(~mask_br, 0.0)
    ratio_br = difference_br.exp()
    plain_br = -advantages_br * ratio_br
    clipped_br = -advantages_br * ratio_br.clamp(1.0 - clip_range, 1.0 + clip_range)
    with torch.no_grad():
        approximate_kl = 0.5 * masked_mean(difference_br**2, mask_br)
        clip_fraction = masked_mean((clipped_br > plain_br).float(), mask_br)
        ratio = masked_mean(ratio_br, mask_br)
    loss = masked_mean(torch.maximum(plain_br, clipped_br), mask_br)
    return PolicyLoss(loss, approximate_kl, clip_fraction, ratio)


def clipped_value_loss(
    values_bs: Tensor, old_values_bs: Tensor, returns_bs: Tensor, mask_bs: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """½ E[max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)], and the share that was clipped.

    Args:
        values_bs: of the value model being trained, per state.
        old_values_bs: when the responses were drawn.
        returns_bs: targets R.
        mask_bs: True for real states, the one past the last token included.
        clip_range: ε.
    """
    limited_bs = old_values_bs + (values_bs - old_values_bs).clamp(-clip_range, clip_range)
    plain_bs = (values_bs - returns_bs) ** 2
    clipped_bs = (limited_bs - returns_bs) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain_bs, clipped_bs), mask_bs)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped_bs > plain_bs).float(), mask_bs)
    return loss, clip_fraction


def explained_variance(values_bs: Tensor, returns_bs: Tensor, mask_bs: Tensor) -> float:
    """1 − Var(R − V)/Var(R) over the mask: 1 is a perfect value model, 0 a constant one."""
    values, returns = values_bs[mask_bs], returns_bs[mask_bs]
    variance = returns.var(unbiased=False)
    if variance == 0:
        return 0.0
    return float(1.0 - (returns - values).var(unbiased=False) / variance)


Control = Literal["fixed", "adaptive", "band"]


@dataclass
class KLController:
    """β and the rule that moves it after each iteration.

    Attributes:
        coefficient: β now.
        control: ``fixed`` leaves it; ``adaptive`` steers the measured KL to ``target`` (Ziegler
            et al. 2019, section 2.2); ``band`` keeps it between ``low`` and ``high``, doubling β
            above and halving it below (PPO-penalty, Schulman et al. 2017, section 4).
        target: KL in nats per response, for ``adaptive``.
        horizon: episodes over which ``adaptive`` corrects a 100 % error.
        low, high: KL in nats per response, for ``band``.
    """

    coefficient: float
    control: Control = "fixed"
    target: float = 6.0
    horizon: int = 10_000
    low: float = 0.0
    high: float = float("inf")

    def update(self, kl: float, episodes: int) -> None:
        """Move β after ``episodes`` responses whose mean KL was ``kl`` nats.

        ``adaptive``: e = clip(KL/target − 1, −0.2, 0.2); β ← β (1 + e · episodes / horizon).
        """
        if self.control == "adaptive":
            error = min(0.2, max(-0.2, kl / self.target - 1.0))
            self.coefficient *= 1.0 + error * episodes / self.horizon
        elif self.control == "band":
            if kl > self.high:
                self.coefficient *= 2.0
            elif kl < self.low:
                self.coefficient /= 2.0

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
