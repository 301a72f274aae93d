"""Rewards per token: the reward model's score at the end, a penalty for drifting on the way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError

LARGEST_REWARD = 1e12
"""Beyond it the square of a value's error, and the gradient's norm, leave float32."""


def checked_rewards(rewards: object, count: int) -> Tensor:
    """What a reward function returned as (count,) float32, apart from its graph.

    Args:
        rewards: a tensor, an array or a list of numbers.
        count: of the responses.

    Raises:
        UserError: they are no numbers, not one for each response, not finite or too large.
    """
    expected = f"expected {count} finite numbers, shape ({count},): one for each response"
    try:
        plain = rewards.tolist() if isinstance(rewards, Tensor | np.ndarray) else rewards
        rewards_b = torch.as_tensor(plain, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"the reward function returned {type(rewards).__name__} that is no list of numbers "
            f"({error}); {expected}",
            "return a tensor or a list of floats",
        ) from error
    if rewards_b.shape != (count,):
        column = rewards_b.shape == (count, 1)
        raise UserError(
            f"the reward function returned shape {tuple(rewards_b.shape)}; {expected}",
            "return rewards.squeeze(1)" if column else "return one reward for each response",
        )
    for problem, wrong_b, fix in (
        ("NaN or infinite", ~rewards_b.isfinite(), "look at this response in the reward function"),
        (
            f"beyond ±{LARGEST_REWARD:g}, too large for float32",
            rewards_b.abs() > LARGEST_REWARD,
            "scale the rewards; a deviation of about 1 is usual",
        ),
    ):
        if wrong_b.any():
            first = int(wrong_b.nonzero()[0])
            raise UserError(
                f"the reward function returned {int(wrong_b.sum())} of {count} rewards that are "
                f"{problem}: the first is {float(rewards_b[first])}, of response {first}; "
                f"{expected}",
                fix,
            )
    return rewards_b.float()


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
