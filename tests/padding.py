"""Masks and positions of padded rows, for models that read whole batches at once."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_mask(valid_bt: Tensor) -> Tensor:
    """Causal mask (batch, length, length) without the padding, where ``valid_bt`` is false.

    Every position attends to itself, so that no softmax is empty.
    """
    length = valid_bt.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid_bt.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid_bt.device)
    return (causal & valid_bt[:, None, :]) | itself


def padded_positions(valid_bt: Tensor) -> Tensor:
    """Position of each token counted from its row's first valid token; 0 on padding."""
    return (valid_bt.long().cumsum(dim=1) - 1).clamp(min=0)
