"""Masked self-attention, the masks it takes, and the cache that spares it past work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.banded import banded_attention
from lmsmith.models.config import ModelConfig
from lmsmith.models.positions import Rotation, rotate

EXPLICIT_LENGTH = 1024
"""Longest rows for which `explicit_attention` may hold all scores at once."""

EXPLICIT_BLOCK = 512
"""Queries of a block of `explicit_attention`: what is saved by smaller ones, smaller products
cost more."""


class KeyValueCache:
    """Keys and values of the tokens seen so far, allocated once.

    ``keys`` and ``values`` are lists, one tensor a layer, of shape (batch, key_value_heads, slots,
    head_width). ``length`` columns have been seen; every row of the batch shares them, so prompts
    of different lengths are padded on the left. A dense layer has a slot for each of ``capacity``
    columns. A banded one has as many as its window, and column c is in slot c mod window, over the
    one that has left the window.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.windows = [config.window_of(layer) for layer in range(config.layers)]
        shapes = [
            (batch, config.shared_heads, min(window or capacity, capacity), config.width_per_head)
            for window in self.windows
        ]
        self.keys = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, keys_bhtk: Tensor, values_bhtk: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new columns of a layer; return those that their queries may see.

        They are the columns that `columns` names. The caller moves ``length`` on once every layer
        has stored its own.
        """
        new = keys_bhtk.shape[2]
        end = self.length + new
        window = self.windows[layer]
        if window and end > window:
            return (
                self._roll(self.keys[layer], keys_bhtk, window),
                self._roll(self.values[layer], values_bhtk, window),
            )
        self.keys[layer][:, :, self.length : end] = keys_bhtk
        self.values[layer][:, :, self.length : end] = values_bhtk
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def columns(self, window: int, new: int) -> Tensor:
        """Which columns `append` returns to ``new`` queries of a layer, in its order."""
        end = self.length + new
        if not window or end <= window:
            return torch.arange(end)
        if new == 1:  # slot by slot, the last column in its own
            slots = torch.arange(window)
            return end - 1 - (end - 1 - slots) % window
        return torch.arange(max(0, self.length - window + 1), end)

    def _roll(self, kept: Tensor, new_bhtk: Tensor, window: int) -> Tensor:
        """Put new columns over those that have left the window."""
        new = new_bhtk.shape[2]
        if new == 1:
            slot = self.length % window
            kept[:, :, slot : slot + 1] = new_bhtk
            return kept
        earlier = torch.arange(max(0, self.length - window + 1), self.length) % window
        seen = torch.cat([kept[:, :, earlier], new_bhtk.to(kept.dtype)], dim=2)
        last = min(new, window)
        slots = torch.arange(self.length + new - last, self.length + new) % window
        kept[:, :, slots] = new_bhtk[:, :, new - last :].to(kept.dtype)
        return seen

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (finished sequences leave, beams are reordered)."""
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]


def packed_mask(documents_bt: Tensor) -> Tensor:
    """Mask (batch, length, length) for rows that hold several documents.

    A position attends to itself and to earlier positions of the same document.
    """
    length = documents_bt.shape[1]
    same = documents_bt[:, :, None] == documents_bt[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    return same & causal


def padded_mask(valid_bt: Tensor) -> Tensor:
    """Mask (batch, length, length) for rows with padding where ``valid_bt`` is false.

    Every position attends to itself, so that a padding position's softmax is never empty (its
    result is never used).
    """
    length = valid_bt.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid_bt.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid_bt.device)
    return (causal & valid_bt[:, None, :]) | itself


def padded_positions(valid_bt: Tensor) -> Tensor:
    """Position of each token counted from its row's first valid token; 0 on padding."""
    return (valid_bt.long().cumsum(dim=1) - 1).clamp(min=0)


def attention_bias(mask_bts: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask as a number to add to the scores: 0 to attend, −∞ not to; (batch, 1, t, s)."""
    if mask_bts is None:
        return None
    bias = torch.zeros(mask_bts.shape, dtype=dtype, device=mask_bts.device)
    return bias.masked_fill_(~mask_bts, float("-inf"))[:, None]


class _ExplicitAttention(torch.autograd.Function):
    """softmax(QKᵀ/√d_k + bias)V for causal biases, its scores written out.

    Queries are taken in blocks, as those of a block need no later keys than their own. With
    E = exp(scores − their row's largest) and its row sums s, the result is (EV)/s: dividing the
    narrow product spares a pass over all weights, and E is all that the backward pass needs of
    them. With dO' = dO/s and δ = rowsum(dO' ∘ O), as in Dao et al. 2022, appendix B.2:
    dV = Eᵀ dO', d scores = E ∘ (dO' Vᵀ − δ).
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
        query_gradient = torch.cat(query_gradients, dim=2)
        return (
            query_gradient,
            key_gradient.to(key.dtype),
            value_gradient.to(value.dtype),
            None,
            None,
        )


def _query_blocks(length: int, block: int) -> list[tuple[int, int]]:
    return [(start, min(length, start + block)) for start in range(0, length, block)]


def explicit_attention(
    query_bhtk: Tensor,
    key_bhsk: Tensor,
    value_bhsk: Tensor,
    bias_b1ts: Tensor | None,
    block: int = EXPLICIT_BLOCK,
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V with its scores written out, for the compiler to fuse.

    On a CPU at lengths of a few hundred this is faster forward and backward, once compiled, than
    the fused kernel, whose backward pass is slow there; it needs memory for all scores.

    Args:
        query_bhtk, key_bhsk, value_bhsk: of one length, t = s.
        bias_b1ts: must forbid (−∞) what a causal mask forbids, and may forbid more; causal if
            None.
        block: queries handled together.
    """
    result: Tensor = _ExplicitAttention.apply(  # type: ignore[no-untyped-call]
        query_bhtk, key_bhsk, value_bhsk, bias_b1ts, block
    )
    return result


Bias = Tensor | list[Tensor] | None
"""What is added to the scores: of a dense layer one tensor, or none where it is plainly causal; of
a banded one a tensor for each block of queries."""


def single_query_attention(
    query_bhgk: Tensor, key_bhsk: Tensor, value_bhsk: Tensor, bias: Tensor | None
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V for one new token a row, as a step of generation has it.

    The fused kernel takes some ten times what reading keys and values takes here.

    Args:
        query_bhgk: the g heads that share keys and values.
        key_bhsk, value_bhsk: of all columns.
        bias: added to the scores, (batch, 1, 1, s), or None.
    """
    scores = (key_bhsk @ query_bhgk.transpose(-1, -2)).transpose(-1, -2).float()
    scores = scores * query_bhgk.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    mixed: Tensor = scores.softmax(dim=-1).to(value_bhsk.dtype) @ value_bhsk
    return mixed


class SelfAttention(nn.Module):
    """Multi-head attention, softmax(QKᵀ/√d_k)V (Vaswani et al. 2017, section 3.2), with queries
    in groups that share a head of keys and values (Ainslie et al. 2023) if there are fewer."""

    def __init__(self, config: ModelConfig, window: int = 0) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width_per_head
        self.shared_heads = config.shared_heads
        self.query_key_value = nn.Linear(
            config.width,
            (self.heads + 2 * self.shared_heads) * self.head_width,
            bias=config.query_key_value_bias,
        )
        self.output = nn.Linear(
            self.heads * self.head_width, config.width, bias=config.attention_output_bias
        )
        self.dropout = config.dropout
        self.window = window
        self.explicit = False

    def forward(
        self,
        x_btd: Tensor,
        bias: Bias = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        rotation: Rotation | None = None,
    ) -> Tensor:
        batch, length, _ = x_btd.shape
        query, key, value = self._project(x_btd, rotation)
        if cache is not None:
            key, value = cache.append(layer, key, value)
            query = query.to(key.dtype)
        mixed_bhtk = self._mix(query, key, value, bias, from_cache=cache is not None)
        joined: Tensor = self.output(mixed_bhtk.transpose(1, 2).reshape(batch, length, -1))
        return joined

    def _project(self, x_btd: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, t, head_width), and keys and values of the shared heads."""
        split = self.query_key_value(x_btd).view(*x_btd.shape[:2], -1, self.head_width)
        query, key, value = (
            part.transpose(1, 2)
            for part in split.split([self.heads, self.shared_heads, self.shared_heads], dim=2)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def weights(self, x_btd: Tensor, rotation: Rotation | None, queries: int) -> Tensor:
        """How much each of the last tokens attends to every token, (batch, heads, queries, t).

        It is softmax(QKᵀ/√d_k) over what causality, and the window if there is one, let it see.
        """
        length = x_btd.shape[1]
        query, key, _ = self._project(x_btd, rotation)
        key = key.repeat_interleave(self.heads // self.shared_heads, dim=1)
        scores = (query[:, :, -queries:] @ key.transpose(-1, -2)).float()
        places = torch.arange(length, device=x_btd.device)
        distance = places[-queries:, None] - places[None]
        hidden = (distance < 0) | (distance >= (self.window or length))
        scores = (scores * self.head_width**-0.5).masked_fill(hidden, float("-inf"))
        result: Tensor = scores.softmax(dim=-1)
        return result

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Bias, *, from_cache: bool
    ) -> Tensor:
        """The values that each query's weights add up to, (batch, heads, t, head_width)."""
        length, group = query.shape[2], self.heads // self.shared_heads
        dropout = self.dropout if self.training else 0.0
        if group > 1 and length > 1:
            key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        elif group > 1:  # one query a head: a group's are as many queries of one head
            query = query.reshape(query.shape[0], self.shared_heads, group, self.head_width)
        if from_cache and length == 1 and not isinstance(bias, list):
            mixed = single_query_attention(query, key, value, bias)
        elif isinstance(bias, list):
            mixed = banded_attention(query, key, value, bias, self.window, dropout)
        elif self.explicit and length <= EXPLICIT_LENGTH and not from_cache and dropout == 0.0:
            mixed = explicit_attention(query, key, value, bias)
        else:
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=bias,
                dropout_p=dropout,
                is_causal=bias is None and length > 1,
            )
        return mixed.reshape(mixed.shape[0], self.heads, length, self.head_width)
