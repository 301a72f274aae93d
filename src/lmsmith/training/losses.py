"""Next-token loss without ever holding all logits: the unembedding and the loss in chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Target value of positions without loss."""

CHUNK_ELEMENTS = 8 << 20
"""Logits held at once; chosen so that a chunk's passes stay in cache."""


def _softmax_step(logits_nv: Tensor, targets_n: Tensor, valid_n: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (n,) float32, and their gradient at the logits in the logits' own type."""
    wide = logits_nv.float()
    normaliser = torch.logsumexp(wide, dim=-1, keepdim=True)
    losses_n = (normaliser - wide.gather(1, targets_n[:, None]))[:, 0] * valid_n
    gradient = torch.exp(wide - normaliser)
    is_target = torch.arange(wide.shape[1], device=wide.device) == targets_n[:, None]
    gradient = torch.where(is_target, gradient - 1.0, gradient) * valid_n[:, None]
    return losses_n, gradient.to(logits_nv.dtype)


@functools.cache
def _compiled_softmax_step() -> Callable[..., tuple[Tensor, Tensor]]:
    """Made when first asked for: asking imports the whole compiler, which takes seconds."""
    return torch.compile(_softmax_step, dynamic=False)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over positions of −log softmax(h Wᵀ)[target], gradients made in the forward pass.

    The gradient of the logits is softmax − one-hot, known as soon as the logits are; so each
    chunk of logits is made once, used for the loss and both gradients, and dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        dtype: torch.dtype,
        compiled: bool,
    ) -> Tensor:
        step = _compiled_softmax_step() if compiled else _softmax_step
        weight = weight_vd.detach().to(dtype)
        total = torch.zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden_nd)
        weight_gradient = torch.zeros_like(weight_vd)
        for rows in _chunks(hidden_nd.shape[0], weight.shape[0]):
            hidden = hidden_nd[rows].detach().to(dtype)
            targets = targets_n[rows]
            losses, gradient = step(hidden @ weight.T, targets.clamp(min=0), targets != IGNORED)
            total += losses.sum()
            hidden_gradient[rows] = gradient @ weight
            weight_gradient += gradient.T @ hidden
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_gradient * scale, weight_gradient * scale, None, None, None


def linear_cross_entropy_sum(
    hidden: Tensor, weight_vd: Tensor, targets: Tensor, *, compiled: bool = False
) -> Tensor:
    """Cross entropy in nats, summed over the positions whose target is not `IGNORED`.

    Args:
        hidden: (…, width).
        weight_vd: unembedding (vocabulary, width).
        targets: (…) token ids or `IGNORED`.
        compiled: whether to compile the softmax (four times as fast, after some seconds).
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    hidden_nd, targets_n = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight_vd.requires_grad):
            loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
                hidden_nd, weight_vd, targets_n, dtype, compiled
            )
            return loss
        weight = weight_vd.to(dtype)
        total = torch.zeros((), dtype=torch.float32)
        for rows in _chunks(hidden_nd.shape[0], weight.shape[0]):
            logits = (hidden_nd[rows].to(dtype) @ weight.T).float()
            total += F.cross_entropy(logits, targets_n[rows], ignore_index=IGNORED, reduction="sum")
        return total


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    """Even slices of the rows whose logits number about `CHUNK_ELEMENTS`."""
    count = max(1, round(rows * vocabulary / CHUNK_ELEMENTS))
    size = -(-rows // count)
    return [slice(start, start + size) for start in range(0, rows, size)]
