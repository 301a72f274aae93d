"""Attention of a text to itself or to another (Vaswani et al. 2017, section 3.2), and its masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.attention_kernels import (
    EXPLICIT_LENGTH,
    banded_attention,
    explicit_attention,
    plain_attention,
    trains_plainly,
)
from lmsmith.models.config import ModelConfig
from lmsmith.models.positions import Rotation, rotate


def packed_mask(documents_bt: Tensor) -> Tensor:
    """Causal mask (batch, length, length) within each document of a row."""
    length = documents_bt.shape[1]
    same = documents_bt[:, :, None] == documents_bt[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    return same & causal


def padding_mask(lengths_b: Tensor, length: int) -> Tensor:
    """Mask (batch, 1, length): every position attends to the first ``lengths_b`` columns."""
    return (torch.arange(length, device=lengths_b.device) < lengths_b[:, None])[:, None]


def attention_bias(mask_bts: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask as a term of the scores, 0 to attend, else −∞; (batch, 1, t, s)."""
    if mask_bts is None:
        return None
    bias = torch.zeros(mask_bts.shape, dtype=dtype, device=mask_bts.device)
    return bias.masked_fill_(~mask_bts, float("-inf"))[:, None]


Bias = Tensor | list[Tensor] | None
"""Term of the scores: of a dense layer a tensor, or None for the config's own rule (causal, or none
where an encoder sees everything); of a banded one a tensor for each block of queries."""


KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (batch, key-value heads, s, head_width)."""


@dataclass
class KeptKeys:
    """Keys and values of the tokens that were read before, for each row that is written."""

    kept: KeysValues | None = None

    def extend(self, new: KeysValues) -> KeysValues:
        """Keep more tokens' keys and values; those of all tokens so far are returned."""
        if self.kept is not None:
            key, value = (torch.cat(parts, dim=2) for parts in zip(self.kept, new, strict=True))
            new = key, value
        self.kept = new
        return new

    def select(self, rows_b: Tensor) -> None:
        """Keep these rows, in this order; one may be taken several times."""
        if self.kept is not None:
            key, value = self.kept
            self.kept = key[rows_b], value[rows_b]


class Attention(nn.Module):
    """Multi-head attention, softmax(QKᵀ/√d_k)V; grouped queries as in Ainslie et al. 2023.

    A subclass makes the queries, keys and values.
    """

    output: nn.Linear

    def __init__(self, config: ModelConfig, window: int = 0, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width_per_head
        self.kv_heads = config.resolved_kv_heads
        self.dropout = config.dropout
        self.window = window
        self.causal = causal
        self.explicit = False

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Bias, causal: bool
    ) -> Tensor:
        """Weighted values of each query, joined and projected: (batch, t, width)."""
        projected: Tensor = self.output(self._joined(query, key, value, bias, causal))
        return projected

    def _joined(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Bias, causal: bool
    ) -> Tensor:
        """Weighted values of each query, the heads' beside each other: (batch, t, …)."""
        group = self.heads // self.kv_heads
        if group > 1:
            key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        mixed_bhtk = self._mix(query, key, value, bias, causal)
        return mixed_bhtk.transpose(1, 2).flatten(2)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Bias, causal: bool) -> Tensor:
        """Weighted values of each query, (batch, heads, t, head_width)."""
        dropout = self.dropout if self.training else 0.0
        if isinstance(bias, list):
            return banded_attention(query, key, value, bias, self.window, dropout)
        explicit = self.explicit and causal and dropout == 0.0
        if explicit and query.shape[2] <= EXPLICIT_LENGTH:
            return explicit_attention(query, key, value, bias)
        if trains_plainly(query, key, dropout):
            return plain_attention(query, key, value, bias, causal, dropout)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=causal and bias is None
        )

    def _heads(self, projected_btd: Tensor) -> Tensor:
        """(batch, t, …) → (batch, t, all heads in it, head_width)."""
        split: Tensor = projected_btd.view(*projected_btd.shape[:2], -1, self.head_width)
        return split


class SelfAttention(Attention):
    """Attention of a text's positions to each other."""

    def __init__(self, config: ModelConfig, window: int = 0) -> None:
        super().__init__(config, window, causal=config.causal)
        width, inner = config.width, self.heads * self.head_width
        projected = inner + 2 * self.kv_heads * self.head_width
        self.query_key_value = nn.Linear(width, projected, bias=config.qkv_bias)
        self.output = nn.Linear(inner, width, bias=config.attention_output_bias)

    def forward(
        self,
        x_btd: Tensor,
        bias: Bias = None,
        rotation: Rotation | None = None,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """(batch, length, width) → the same.

        Args:
            kept: keys and values of the tokens before, which are seen too; ``x_btd`` is then one
                token a row.
        """
        query, key, value = self._project(x_btd, rotation)
        if kept is not None:
            key, value = kept.extend((key, value))
        return self._attend(query, key, value, bias, self.causal and kept is None)

    def attend(self, projected_bti: Tensor, rotation: Rotation | None = None) -> Tensor:
        """What `query_key_value` gives → what `output` takes, for rows without padding."""
        return self._joined(*self._split(projected_bti, rotation), None, self.causal)

    def _project(self, x_btd: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, t, head_width), and keys and values of their own heads."""
        return self._split(self.query_key_value(x_btd), rotation)

    def _split(
        self, projected_bti: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self._heads(projected_bti)
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        query, key, value = (part.transpose(1, 2) for part in torch.split(heads, sizes, dim=2))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def weights(self, x_btd: Tensor, rotation: Rotation | None, queries: int) -> Tensor:
        """softmax(QKᵀ/√d_k) of the last ``queries`` tokens, (batch, heads, queries, t)."""
        length = x_btd.shape[1]
        query, key, _ = self._project(x_btd, rotation)
        key = key.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = (query[:, :, -queries:] @ key.transpose(-1, -2)).float()
        places = torch.arange(length, device=x_btd.device)
        distance = places[-queries:, None] - places[None]
        hidden = (distance < 0) | (distance >= (self.window or length))
        hidden &= self.causal
        scores = (scores * self.head_width**-0.5).masked_fill(hidden, float("-inf"))
        result: Tensor = scores.softmax(dim=-1)
        return result


class CrossAttention(Attention):
    """Attention of a text's positions to all of another text (Vaswani et al. 2017, 3.2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, causal=False)
        inner, shared = self.heads * self.head_width, 2 * self.kv_heads * self.head_width
        self.query = nn.Linear(config.width, inner, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.width, shared, bias=config.qkv_bias)
        self.output = nn.Linear(inner, config.width, bias=config.attention_output_bias)

    def keys_values(self, memory_bsd: Tensor) -> KeysValues:
        """Keys and values of the other text's states (batch, s, width)."""
        key, value = self._heads(self.key_value(memory_bsd)).transpose(1, 2).chunk(2, dim=1)
        return key, value

    def forward(self, x_btd: Tensor, memory: KeysValues, bias: Tensor | None) -> Tensor:
        """(batch, t, width) → the same.

        Args:
            memory: `keys_values` of the other text.
            bias: −∞ where it has no token, (batch, 1, 1, s).
        """
        query = self._heads(self.query(x_btd)).transpose(1, 2)
        return self._attend(query, *memory, bias, causal=False)

    def weights(self, x_btd: Tensor, memory: KeysValues) -> Tensor:
        """softmax(QKᵀ/√d_k) without padding, float32 (batch, heads, t, s)."""
        query = self._heads(self.query(x_btd)).transpose(1, 2)
        key = memory[0].repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = (query @ key.transpose(-1, -2)).float() * self.head_width**-0.5
        result: Tensor = scores.softmax(dim=-1)
        return result
