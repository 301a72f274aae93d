"""softmax(QKᵀ/√d_k + bias)V in three ways: for short rows, scores written out, and locally banded.

Locally banded attention sees the last ``window`` tokens, at a cost of T · window.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.device import is_host
from lmsmith.models.dropout import drop

EXPLICIT_LENGTH = 1024
"""Maximum length of rows for `explicit_attention`, which holds all scores at once."""

EXPLICIT_BLOCK = 512
"""Queries of a block of `explicit_attention`; the products of smaller ones cost more."""


SHORT_LENGTH = 256
"""Maximum length of rows for `plain_attention` without dropout."""


def trains_plainly(query_bhtk: Tensor, key_bhsk: Tensor, dropout: float) -> bool:
    """Whether `plain_attention` is faster than PyTorch's kernel: on a CPU, gradients of short rows
    in bf16, or dropout, for which PyTorch has no kernel there."""
    if not torch.is_grad_enabled() or not is_host(query_bhtk.device):
        return False
    short = query_bhtk.dtype == torch.bfloat16 and key_bhsk.shape[2] <= SHORT_LENGTH
    return query_bhtk.requires_grad and (dropout > 0.0 or short)


def plain_attention(
    query_bhtk: Tensor,
    key_bhsk: Tensor,
    value_bhsk: Tensor,
    bias_b1ts: Tensor | None,
    causal: bool,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V by plain products, for training on short rows in bf16.

    On a CPU the fused kernel's backward pass takes several times as long there: it multiplies
    blocks as for long rows.

    Args:
        query_bhtk, key_bhsk, value_bhsk: any lengths t and s; t = s if causal.
        bias_b1ts: term of the scores; with one, ``causal`` is not read.
        causal: whether a query sees no later key.
        dropout: probability, on the weights.
    """
    scores_bhts = (query_bhtk @ key_bhsk.transpose(-1, -2)).float()
    scores_bhts = scores_bhts.mul_(query_bhtk.shape[-1] ** -0.5)  # in place: new memory costs more
    if bias_b1ts is not None:
        scores_bhts = scores_bhts.add_(bias_b1ts)
    elif causal:
        future = torch.ones_like(scores_bhts[0, 0], dtype=torch.bool).triu(1)
        scores_bhts = scores_bhts.masked_fill_(future, float("-inf"))
    weights_bhts = scores_bhts.softmax(dim=-1).to(value_bhsk.dtype)
    mixed_bhtk: Tensor = drop(weights_bhts, dropout) @ value_bhsk
    return mixed_bhtk


class _ExplicitAttention(torch.autograd.Function):
    """softmax(QKᵀ/√d_k + bias)V for causal biases, a block of queries at a time.

    With E = exp(scores − their row's largest) and its row sums s, the result is (EV)/s: dividing
    the narrow product saves a pass over all weights, and the backward pass needs E alone. With
    dO' = dO/s and δ = rowsum(dO' ∘ O), as in Dao et al. 2022, appendix B.2: dV = Eᵀ dO',
    d scores = E ∘ (dO' Vᵀ − δ).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, block: int
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        scale = query.shape[-1] ** -0.5
        weights, sums, mixed = [], [], []
        for start, end in _query_blocks(query.shape[2], block):
            scores = (query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)).float() * scale
            if bias is None:
                future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1 + start)
                scores = scores.masked_fill(future, float("-inf"))
            else:
                scores = scores + bias[:, :, start:end, :end]
            exponentials = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
            sums.append(exponentials.sum(dim=-1, keepdim=True))
            weights.append(exponentials.to(query.dtype))
            mixed.append(((weights[-1] @ value[:, :, :end]).float() / sums[-1]).to(query.dtype))
        result, sum_bht1 = torch.cat(mixed, dim=2), torch.cat(sums, dim=2)
        ctx.save_for_backward(query, key, value, result, sum_bht1, *weights)
        ctx.block = block
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, sum_bht1, *weights = ctx.saved_tensors
        length, scale = query.shape[2], query.shape[-1] ** -0.5
        scaled = grad_outputs[0].float() / sum_bht1
        delta_bht1 = (scaled * result.float()).sum(dim=-1, keepdim=True)
        scaled = scaled.to(query.dtype)
        query_gradients = []
        key_gradient = torch.zeros_like(key, dtype=torch.float32)
        value_gradient = torch.zeros_like(value, dtype=torch.float32)
        blocks = _query_blocks(length, ctx.block)
        for (start, end), exponentials in zip(blocks, weights, strict=True):
            rows = slice(start, end)
            weight_gradient = (scaled[:, :, rows] @ value[:, :, :end].transpose(-1, -2)).float()
            score_gradient = exponentials.float() * (weight_gradient - delta_bht1[:, :, rows])
            score_gradient = (score_gradient * scale).to(query.dtype)
            query_gradients.append(score_gradient @ key[:, :, :end])
            unused = (0, 0, 0, length - end)
            key_part = score_gradient.transpose(-1, -2) @ query[:, :, rows]
            value_part = exponentials.transpose(-1, -2) @ scaled[:, :, rows]
            key_gradient = key_gradient + F.pad(key_part.float(), unused)
            value_gradient = value_gradient + F.pad(value_part.float(), unused)
        gradients = torch.cat(query_gradients, dim=2), key_gradient.to(key.dtype)
        return (*gradients, value_gradient.to(value.dtype), None, None)


def _query_blocks(length: int, block: int) -> list[tuple[int, int]]:
    return [(start, min(length, start + block)) for start in range(0, length, block)]


def explicit_attention(
    query_bhtk: Tensor,
    key_bhsk: Tensor,
    value_bhsk: Tensor,
    bias_b1ts: Tensor | None,
    block: int = EXPLICIT_BLOCK,
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V with its scores in memory, for the compiler to fuse.

    On a CPU, compiled, at lengths of a few hundred, it is faster than the fused kernel.

    Args:
        query_bhtk, key_bhsk, value_bhsk: of one length, t = s.
        bias_b1ts: −∞ where a causal mask forbids, and perhaps elsewhere; causal if None.
        block: queries of a block.
    """
    operands = (query_bhtk, key_bhsk, value_bhsk, bias_b1ts, block)
    result: Tensor = _ExplicitAttention.apply(*operands)  # type: ignore[no-untyped-call]
    return result


BLOCKS_PER_WINDOW = 4
"""A block of window / 4 queries reads window + block keys, few of them outside its queries'
windows. Smaller blocks cost more calls than they save."""


def query_block(window: int) -> int:
    """Queries of a block."""
    return max(1, -(-window // BLOCKS_PER_WINDOW))


def block_columns(length: int, window: int) -> list[tuple[slice, slice]]:
    """Rows of each block of queries, and the columns of its keys."""
    size = query_block(window)
    reach = size * -(-(window - 1) // size)  # whole blocks, so that their borders are shared
    blocks = _query_blocks(length, size)
    return [(slice(start, end), slice(max(0, start - reach), end)) for start, end in blocks]


def band_biases(
    length: int,
    window: int,
    mask_bts: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """Terms (0 or −∞) of the scores of each block of queries in `banded_attention`.

    Args:
        length: tokens.
        window: tokens a query sees, itself included.
        mask_bts: True where a query may see a column, (batch, length, length); causal if None.
        dtype: of the scores.
        device: of the biases, where there is no mask.

    Returns:
        One tensor a block, (batch or 1, 1, rows, columns).
    """
    made: dict[tuple[int, int, int], Tensor] = {}
    biases = []
    for rows, columns in block_columns(length, window):
        # Blocks of equal shape share one tensor.
        shape = (rows.stop - rows.start, columns.stop - columns.start, rows.start - columns.start)
        if mask_bts is not None or shape not in made:
            row = torch.arange(rows.start, rows.stop, device=device)[:, None]
            column = torch.arange(columns.start, columns.stop, device=device)[None]
            seen = ((column <= row) & (column > row - window))[None]
            if mask_bts is not None:
                seen = seen & mask_bts[:, rows, columns]
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            made[shape] = bias.masked_fill_(~seen, float("-inf"))[:, None]
        biases.append(made[shape])
    return biases


def banded_attention(
    query_bhtk: Tensor,
    key_bhsk: Tensor,
    value_bhsk: Tensor,
    biases: list[Tensor],
    window: int,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V over the last ``window`` columns of each query (Child et al.
    2019, section 4.2; GPT-Neo's local attention).

    Args:
        query_bhtk, key_bhsk, value_bhsk: of one length, t = s.
        biases: `band_biases` of this length.
        window: tokens a query sees, itself included.
        dropout: probability, on the weights.

    Returns:
        (batch, heads, t, head_width).
    """
    columns = [columns for _, columns in block_columns(key_bhsk.shape[2], window)]
    queries = torch.split(query_bhtk, query_block(window), dim=2)
    keys, values = _overlapping(key_bhsk, columns), _overlapping(value_bhsk, columns)
    mixed = [
        F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        for query, key, value, bias in zip(queries, keys, values, biases, strict=True)
    ]
    return torch.cat(mixed, dim=2)


def _overlapping(part_bhsk: Tensor, columns: list[slice]) -> list[Tensor]:
    """Slices of a tensor, joined from pieces so that their gradients have the slices' size.

    The gradient of a plain slice is as large as the whole tensor: T² / block for all of them.
    """
    edges = sorted({0, part_bhsk.shape[2]} | {c.start for c in columns} | {c.stop for c in columns})
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    pieces = torch.split(part_bhsk, sizes, dim=2)
    place = {edge: index for index, edge in enumerate(edges)}
    return [torch.cat(pieces[place[c.start] : place[c.stop]], dim=2) for c in columns]
