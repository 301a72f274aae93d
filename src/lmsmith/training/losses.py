"""Next-token loss without ever holding all logits: the unembedding and the loss in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Target value of positions without loss."""

CHUNK_ELEMENTS = 8 << 20
"""Logits held at once; chosen so that a chunk's passes stay in cache."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over positions of −log softmax(h Wᵀ)[target], gradients made in the forward pass.

    The gradient of the logits is softmax − one-hot, known as soon as the logits are; so each
    chunk of logits is made once, used for the loss and both gradients, and dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, dtype: torch.dtype
    ) -> Tensor:
        needs_gradient = hidden_nd.requires_grad or weight_vd.requires_grad
        weight = weight_vd.detach().to(dtype)
        total = torch.zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden_nd) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight_vd) if needs_gradient else None
        rows = max(128, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, hidden_nd.shape[0], rows):
            hidden = hidden_nd[start : start + rows].detach().to(dtype)
            targets = targets_n[start : start + rows]
            valid = targets != IGNORED
            log_probs = F.log_softmax((hidden @ weight.T).float(), dim=-1)
            index = targets.clamp(min=0)[:, None]
            total -= log_probs.gather(1, index)[:, 0].masked_fill(~valid, 0.0).sum()
            if hidden_gradient is None or weight_gradient is None:
                continue
            gradient = log_probs.exp_()
            gradient.scatter_add_(1, index, torch.full_like(index, -1.0, dtype=torch.float32))
            gradient = (gradient * valid[:, None]).to(dtype)
            hidden_gradient[start : start + rows] = gradient @ weight
            weight_gradient += gradient.T @ hidden
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_gradient * scale, weight_gradient * scale, None, None


def linear_cross_entropy_sum(hidden: Tensor, weight_vd: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats, summed over the positions whose target is not `IGNORED`.

    Args:
        hidden: (…, width).
        weight_vd: unembedding (vocabulary, width).
        targets: (…) token ids or `IGNORED`.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.reshape(-1, hidden.shape[-1]), weight_vd, targets.reshape(-1), dtype
        )
    return loss
