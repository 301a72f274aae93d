"""Advantages: generalised advantage estimation and whitening, over what is not padding."""

from __future__ import annotations

import torch
from torch import Tensor


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
