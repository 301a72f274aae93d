"""PPO's two losses (Schulman et al. 2017, eq. 7 and 9), as means over response tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.rlhf.advantages import masked_mean


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
