"""Next-token loss that never holds all logits: the unembedding and the loss in chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.device import compute_dtype, without_autocast
from lmsmith.models.compiled_code import remove_unfinished_libraries

CHUNK_ELEMENTS = 8 << 20
"""Logits held at once; chosen so that a chunk's passes stay in cache."""

CHUNK_ROWS = 2048
"""Fewest rows of a chunk: with few of them and a large vocabulary, adding to the gradient of the
unembedding would take most of the time."""


def _softmax_step(
    logits_nv: Tensor, targets_n1: Tensor, valid_n1: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses (n, 1), softmax (n, v), and softmax − 1 at the targets (n, 1).

    The losses are float32, the gradients of the logits' type; all are 0 where not valid. The caller
    fills in the targets' place: compiled, that would be a copy. With ``smoothing`` the 1 at the
    target is 1 − ε there and ε/v everywhere.
    """
    wide_nv = logits_nv.float()  # changed in place: each pass over new memory takes twice as long
    target_n1 = wide_nv.gather(1, targets_n1)
    mean_n1 = wide_nv.mean(dim=-1, keepdim=True) if smoothing else target_n1
    largest_n1 = wide_nv.amax(dim=-1, keepdim=True)
    exponential_nv = wide_nv.sub_(largest_n1).exp_()
    total_n1 = exponential_nv.sum(dim=-1, keepdim=True)
    normaliser_n1 = largest_n1 + total_n1.log()
    losses_n1 = normaliser_n1 - target_n1
    softmax_nv = exponential_nv.mul_(valid_n1 / total_n1)
    at_target_n1 = (torch.exp(-losses_n1) - 1.0) * valid_n1
    if smoothing:
        everywhere = smoothing / logits_nv.shape[1]
        at_target_n1 = at_target_n1 + (smoothing - everywhere) * valid_n1
        softmax_nv = softmax_nv.sub_(everywhere * valid_n1)
        losses_n1 = (1.0 - smoothing) * losses_n1 + smoothing * (normaliser_n1 - mean_n1)
    dtype = logits_nv.dtype
    return losses_n1 * valid_n1, softmax_nv.to(dtype), at_target_n1.to(dtype)


@functools.cache
def _compiled_softmax_step() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Compiled on first use: it imports the whole compiler, which takes seconds."""
    remove_unfinished_libraries()
    return torch.compile(_softmax_step, dynamic=False)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over positions of −log softmax(h Wᵀ)[target], gradients made in the forward pass.

    The gradient of the logits is softmax − one-hot: each chunk of logits is made once, used for
    the loss and both gradients, and dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        dtype: torch.dtype,
        compiled: bool,
        smoothing: float,
    ) -> Tensor:
        step = _compiled_softmax_step() if compiled else _softmax_step
        weight = weight_vd.detach().to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        hidden_gradient = torch.empty_like(hidden_nd)
        # Transposed: a product is twice as fast when its left factor lies in order, and hidden
        # states are smaller to transpose than gradients. A frozen weight has none.
        weight_learns = weight_vd.requires_grad
        weight_gradient_dv = torch.zeros(
            weight.T.shape if weight_learns else (0, 0), device=weight.device
        )
        for rows in chunks(hidden_nd.shape[0], weight.shape[0]):
            hidden = hidden_nd[rows].detach().to(dtype)
            targets = targets_n[rows, None]
            places = targets.clamp(min=0)
            valid = targets != NO_TARGET
            losses, gradient, at_target = step(hidden @ weight.T, places, valid, smoothing)
            # Not scatter_, whose deterministic form copies all of it.
            rows_n = torch.arange(len(places), device=places.device)
            gradient[rows_n, places[:, 0]] = at_target[:, 0]
            total += losses.sum()
            hidden_gradient[rows] = gradient @ weight
            if weight_learns:
                weight_gradient_dv += hidden.T.contiguous() @ gradient
        ctx.save_for_backward(hidden_gradient, weight_gradient_dv)
        return total

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        hidden_gradient, weight_gradient_dv = ctx.saved_tensors
        scale = grad_outputs[0]
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (weight_gradient_dv * scale).T.contiguous()
        return hidden_gradient * scale, weight_gradient, None, None, None, None


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    *,
    compiled: bool = False,
    smoothing: float = 0.0,
    all_count: bool = False,
) -> Tensor:
    """Cross entropy in nats, summed over the positions whose target is not `NO_TARGET`.

    Args:
        hidden: (…, width).
        weight_vd: unembedding (vocabulary, width).
        targets: (…) token ids or `NO_TARGET`.
        compiled: whether to compile the softmax (four times as fast, after some seconds).
        smoothing: ε of label smoothing (Szegedy et al. 2016, section 7): the target distribution
            has 1 − ε more at the target than ε / vocabulary everywhere.
        all_count: no target is ignored, and none is looked at, as where tensors have no numbers.
    """
    dtype = compute_dtype(hidden)
    hidden_nd, targets_n = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if not all_count and (needed := _needed_positions(targets_n)) is not None:
        hidden_nd, targets_n = hidden_nd[needed], targets_n[needed]
    with without_autocast(hidden.device):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight_vd.requires_grad):
            loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
                hidden_nd, weight_vd, targets_n, dtype, compiled, smoothing
            )
            return loss
        weight = weight_vd.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for rows in chunks(hidden_nd.shape[0], weight.shape[0]):
            logits = (hidden_nd[rows].to(dtype) @ weight.T).float()
            total += F.cross_entropy(
                logits,
                targets_n[rows],
                ignore_index=NO_TARGET,
                reduction="sum",
                label_smoothing=smoothing,
            )
        return total


def _needed_positions(targets_n: Tensor) -> Tensor | None:
    """Positions to make logits for, in order; None for all.

    In fine-tuning most are ignored. Some of these fill the number up to a multiple of
    `CHUNK_ROWS` / 2, so that compiled code has few shapes.
    """
    ignored_n = targets_n == NO_TARGET
    granule = max(1, CHUNK_ROWS // 2)
    count = -(-int((~ignored_n).sum()) // granule) * granule
    if count >= len(targets_n):
        return None
    return ignored_n.to(torch.uint8).argsort(stable=True)[:count].sort().values


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of about `CHUNK_ELEMENTS` logits, or of `CHUNK_ROWS` rows if that is more."""
    size = max(CHUNK_ROWS, CHUNK_ELEMENTS // vocabulary // CHUNK_ROWS * CHUNK_ROWS)
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]
