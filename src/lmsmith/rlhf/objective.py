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


def better_pairs(ranks_bk: Tensor) -> Tensor:
    """(batch, K, K): True at (w, l) where response w ranks above l; ties and padding are False.

    Here and below ``ranks_bk`` is 1 for the best, equal for ties, and 0 for the padding of a prompt
    with fewer than K responses, whose scores may be anything.
    """
    present_bk = ranks_bk > 0
    above_bkk = ranks_bk[:, :, None] < ranks_bk[:, None, :]
    return above_bkk & present_bk[:, :, None] & present_bk[:, None, :]


def _differences(scores_bk: Tensor) -> Tensor:
    """(batch, K, K), float32: r_w − r_l at (w, l)."""
    scores_bk = scores_bk.float()
    return scores_bk[:, :, None] - scores_bk[:, None, :]


def ranking_loss(scores_bk: Tensor, ranks_bk: Tensor, weights_b: Tensor | None = None) -> Tensor:
    """−log σ(r_w − r_l), averaged over the pairs of each prompt, then over prompts; float32.

    Ouyang et al. 2022, equation 1, whose 1 / C(K,2) counts the pairs that are not tied, since
    ties are dropped. Prompts without such a pair do not count. Weights, 1 on average, multiply the
    losses of prompts.
    """
    pairs_bkk = better_pairs(ranks_bk)
    differences_bkk = _differences(scores_bk.masked_fill(ranks_bk <= 0, 0.0))
    # softplus(−x) = −log σ(x), without overflow
    losses_bkk = F.softplus(-differences_bkk).masked_fill(~pairs_bkk, 0.0)
    pairs_b = pairs_bkk.sum(dim=(1, 2))
    losses_b = losses_bkk.sum(dim=(1, 2)) / pairs_b.clamp(min=1)
    if weights_b is not None:
        losses_b = losses_b * weights_b
    return losses_b.sum() / (pairs_b > 0).sum().clamp(min=1)


def thumb_loss(scores_b: Tensor, liked_b: Tensor, reference: float, weights_b: Tensor) -> Tensor:
    """−log σ(±(r − r₀)), + for a response that is liked, averaged; float32.

    A thumb says of one response whether it is better than what people get, r₀, and compares it
    with no other one; it is the desirable or undesirable response of Ethayarajh et al. 2024,
    section 4, as a loss of the reward itself.

    Args:
        scores_b: rewards.
        liked_b: whether each is liked, boolean.
        reference: r₀, the mean reward of responses that people ranked; no gradient.
        weights_b: 1 on average.
    """
    signs_b = torch.where(liked_b, 1.0, -1.0)
    return (F.softplus(-signs_b * (scores_b.float() - reference)) * weights_b).mean()


def correct_pairs(scores_bk: Tensor, ranks_bk: Tensor) -> tuple[Tensor, Tensor]:
    """For each prompt, how many of its pairs the scores order rightly, and how many it has.

    Equal scores count one half; ties of ranks are no pairs. Both are float32; the ratio of their
    sums is the accuracy.
    """
    pairs_bkk, differences_bkk = better_pairs(ranks_bk), _differences(scores_bk)
    right_bkk = (differences_bkk > 0).float() + 0.5 * (differences_bkk == 0).float()
    correct_b = right_bkk.masked_fill(~pairs_bkk, 0.0).sum(dim=(1, 2))
    return correct_b, pairs_bkk.sum(dim=(1, 2)).float()


def pair_accuracy(scores_bk: Tensor, ranks_bk: Tensor) -> float:
    """Share of all pairs that are not tied whose better response has the higher score."""
    correct_b, pairs_b = correct_pairs(scores_bk, ranks_bk)
    return float(correct_b.sum() / pairs_b.sum().clamp(min=1))


def pair_differences(scores_bk: Tensor, ranks_bk: Tensor) -> Tensor:
    """r_w − r_l of every pair that is not tied, prompt by prompt: (pairs,), float32."""
    return _differences(scores_bk)[better_pairs(ranks_bk)]


def value_mask(mask_br: Tensor) -> Tensor:
    """The mask of response tokens with one more column, for states: (batch, response_length + 1).

    Column t is the state before token t; the state after the last token, in which the score
    arrives, has a value too.
    """
    return torch.cat([torch.ones_like(mask_br[:, :1]), mask_br], dim=1)


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
        rewards_bs: (batch, response_length + 1), the score in the state right after the
            response's last token.
        penalties_br: the KL part alone, 0 on padding.
    """
    penalties_br = -kl_coefficient * (log_probs_br - reference_log_probs_br)
    penalties_br = penalties_br.masked_fill(~mask_br, 0.0)
    rewards_bs = torch.cat([penalties_br, torch.zeros_like(penalties_br[:, :1])], dim=1)
    lengths_b = mask_br.sum(dim=1)
    rewards_bs[torch.arange(len(scores_b)), lengths_b] += scores_b
    return rewards_bs, penalties_br


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask is true; 0 if it is nowhere."""
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
    """The clipped surrogate and its metrics; all scalars."""

    loss: Tensor
    """−E[min(ρA, clip(ρ, 1 ± ε)A)]."""
    approximate_kl: Tensor
    """½ E[(log π − log π_old)²]."""
    clip_fraction: Tensor
    """Share of tokens where the clipped term was the smaller."""
    ratio: Tensor
    """E[ρ]."""


def clipped_policy_loss(
    log_probs_br: Tensor,
    old_log_probs_br: Tensor,
    advantages_br: Tensor,
    mask_br: Tensor,
    clip_range: float,
    weights_br: Tensor | None = None,
) -> PolicyLoss:
    """ρ = π/π_old per token; the objective takes the worse of ρA and clip(ρ, 1 − ε, 1 + ε)A.

    Args:
        log_probs_br: under the trained policy; carries the gradient.
        old_log_probs_br: under the policy that drew the tokens.
        advantages_br: Â, whitened or not.
        mask_br: True where a response token stands.
        clip_range: ε.
        weights_br: of the tokens (`truncated_weights`); 1 for all if None.
    """
    difference_br = (log_probs_br - old_log_probs_br).masked_fill(~mask_br, 0.0)
    ratio_br = difference_br.exp()
    plain_br = -advantages_br * ratio_br
    clipped_br = -advantages_br * ratio_br.clamp(1.0 - clip_range, 1.0 + clip_range)
    with torch.no_grad():
        approximate_kl = 0.5 * masked_mean(difference_br**2, mask_br)
        clip_fraction = masked_mean((clipped_br > plain_br).float(), mask_br)
        ratio = masked_mean(ratio_br, mask_br)
    worse_br = torch.maximum(plain_br, clipped_br)
    loss = masked_mean(worse_br if weights_br is None else worse_br * weights_br, mask_br)
    return PolicyLoss(loss, approximate_kl, clip_fraction, ratio)


def truncated_weights(log_probs_br: Tensor, drawn_log_probs_br: Tensor, cap: float) -> Tensor:
    """min(π/μ, C) per token: weights of tokens that another engine drew, from μ in place of π.

    μ is π but for rounding, or for weights that are older. E_μ[min(π/μ, C) f] tends to E_π[f] as C
    grows, and its variance is bounded (Ionides 2008, equation 3).

    Args:
        log_probs_br: log π of the drawn tokens, as the trainer computes it; constant.
        drawn_log_probs_br: log μ, as the engine computed it.
        cap: C.
    """
    return (log_probs_br - drawn_log_probs_br).exp().clamp(max=cap)


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
    """β and the rule that moves it after each iteration; KL is in nats per response.

    ``fixed`` leaves it; ``adaptive`` steers the measured KL to ``target`` (Ziegler et al. 2019,
    section 2.2), a 100 % error over ``horizon`` episodes; ``band`` keeps it between ``low`` and
    ``high``, doubling β above and halving it below (PPO-penalty, Schulman et al. 2017, section 4).
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
