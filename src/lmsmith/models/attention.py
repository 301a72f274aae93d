"""Masked self-attention, the masks it takes, and the cache that spares it past work."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.config import ModelConfig


class KeyValueCache:
    """Keys and values of the tokens seen so far, allocated once.

    ``keys`` and ``values`` are lists, one tensor a layer, of shape (batch, heads, capacity,
    head_width). ``length`` tokens are filled; every row of the batch shares that column, so
    prompts of different lengths are padded on the left.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (batch, config.heads, capacity, config.head_width)
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(config.layers)]
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, keys_bhtk: Tensor, values_bhtk: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new columns of a layer; return all its columns so far.

        The caller moves ``length`` on once every layer has stored its columns.
        """
        end = self.length + keys_bhtk.shape[2]
        self.keys[layer][:, :, self.length : end] = keys_bhtk
        self.values[layer][:, :, self.length : end] = values_bhtk
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

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


def explicit_attention(
    query_bhtk: Tensor, key_bhsk: Tensor, value_bhsk: Tensor, bias_b1ts: Tensor | None
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V with its scores written out, for the compiler to fuse.

    On a CPU at lengths of a few hundred this is faster forward and backward, once compiled, than
    the fused kernel, whose backward pass is slow there; it needs memory for all scores.
    """
    scores_bhts = (query_bhtk @ key_bhsk.transpose(-1, -2)).float()
    scores_bhts = scores_bhts * query_bhtk.shape[-1] ** -0.5
    if bias_b1ts is None:
        length = query_bhtk.shape[-2]
        future = torch.ones(length, length, dtype=torch.bool, device=query_bhtk.device).triu(1)
        scores_bhts = scores_bhts.masked_fill(future, float("-inf"))
    else:
        scores_bhts = scores_bhts + bias_b1ts
    return torch.softmax(scores_bhts, dim=-1).to(query_bhtk.dtype) @ value_bhsk


class SelfAttention(nn.Module):
    """Multi-head attention, softmax(QKᵀ/√d_k)V (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.head_width
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = config.dropout
        self.explicit = False

    def forward(
        self,
        x_btd: Tensor,
        bias_b1ts: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        batch, length, width = x_btd.shape
        split = self.query_key_value(x_btd).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = (part.transpose(1, 2) for part in split.unbind(dim=2))
        if cache is not None:
            key, value = cache.append(layer, key, value)
            query = query.to(key.dtype)
        dropout = self.dropout if self.training else 0.0
        if self.explicit and cache is None and dropout == 0.0:
            mixed_bhtk = explicit_attention(query, key, value, bias_b1ts)
        else:
            mixed_bhtk = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=bias_b1ts,
                dropout_p=dropout,
                is_causal=bias_b1ts is None and length > 1,
            )
        joined: Tensor = self.output(mixed_bhtk.transpose(1, 2).reshape(batch, length, width))
        return joined
