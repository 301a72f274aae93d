"""The operations of a forward pass and the draw of a token, in PyTorch.

`native` has them in C++; these serve float32, and machines without a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.device import is_host
from lmsmith.generation.kv_cache import LayerCache
from lmsmith.generation.sampling import choose_tokens
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Mask
from lmsmith.generation.weights import Norm, Weight, onednn_linear
from lmsmith.models.positions import Rotation, rotate


@dataclass(frozen=True)
class Places:
    """Places of the n tokens of a forward pass; a row's tokens are adjacent."""

    rows_n: Tensor  # int32, row of the cache of each; on the processor, as positions_n
    positions_n: Tensor  # int32, position in its row
    spans: list[tuple[int, int, int]]  # (row, first position, tokens), in the same order
    rotation: Rotation | None  # cosines and sines (n, head_width / 2)


class TorchKernels:
    """The operations in PyTorch; n counts tokens."""

    def prepare(self, weight: Weight) -> Weight:
        """A weight in the layout that `linear` prefers."""
        return weight

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        """x Wᵀ + b, in ``dtype``; or added to the float32 ``add_to`` once it is rounded."""
        if weight.rest is not None:
            parts = (replace(weight, rest=None), weight.rest)
            return torch.cat([self.linear(x_ni, part, dtype) for part in parts], dim=1)
        bias = None if weight.bias is None else weight.bias.to(x_ni.dtype)
        values = weight.values
        plain = values.dtype != torch.bfloat16 or not is_host(values.device)
        onednn = None if plain else onednn_linear()
        if onednn is None:
            result = F.linear(x_ni, weight.as_dtype(x_ni.dtype), bias)
        else:
            result = onednn(x_ni, weight.laid_out, bias, "none", [], "")
        return result.to(dtype) if add_to is None else add_to.add_(result)

    def rows(self, weight: Weight, rows_n: Tensor) -> Tensor:
        """Rows of a matrix by number, float32 (n, inputs): an embedding of tokens."""
        return weight.rows(rows_n)

    def norm(self, x_nd: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        """RMSNorm, or LayerNorm where there is a shift; float32 in, ``dtype`` out."""
        weight, shift, epsilon = norm
        if shift is None:
            return F.rms_norm(x_nd, weight.shape, weight, epsilon).to(dtype)
        return F.layer_norm(x_nd, weight.shape, weight, shift, epsilon).to(dtype)

    def gate(self, both_ni: Tensor) -> Tensor:
        """SwiGLU's silu(gate) ∘ inner, where ``both_ni`` holds gate and inner side by side."""
        gate_ni, inner_ni = both_ni.chunk(2, dim=1)
        return F.silu(gate_ni) * inner_ni

    def gelu(self, x_ni: Tensor) -> Tensor:
        """GELU in its form with tanh."""
        return F.gelu(x_ni, approximate="tanh")

    def attend(
        self, projected_nhk: Tensor, places: Places, cache: LayerCache, heads: int
    ) -> Tensor:
        """Store the tokens' keys and values; then softmax(QKᵀ/√d_k)V over those before each.

        Args:
            projected_nhk: queries, keys and values before rotation, (n, heads + 2 × kv_heads,
                head_width), in the cache's type.
            places: of the tokens; the cache has pages for them.
            cache: of this layer.
            heads: of queries.

        Returns:
            (n, heads × head_width).
        """
        query_nhk, key_nhk, value_nhk = split_heads(projected_nhk, heads, places.rotation)
        cache.store(places.rows_n, places.positions_n, key_nhk, value_nhk)
        mixed, at = [], 0
        for row, start, count in places.spans:
            mixed.append(attend_span(query_nhk[at : at + count], cache, row, start))
            at += count
        return torch.cat(mixed)

    def product_dtype(self, weight: Weight, rows: int) -> torch.dtype:
        """The type in which `linear` gives the product of so many rows without rounding it."""
        values = weight.values.dtype
        return values if values.is_floating_point else torch.bfloat16

    def log_sums(self, logits_nv: Tensor) -> tuple[Tensor, Tensor]:
        """log Σ exp of each row, float32 (n,), and the first of its largest, int64 (n,)."""
        return logits_nv.float().logsumexp(dim=-1), logits_nv.argmax(dim=-1)

    def draw(
        self,
        logits_bv: Tensor,
        settings: SamplingSettings,
        uniform_b: Tensor,
        mask: Mask | None = None,
    ) -> Tensor:
        """`choose_tokens`."""
        return choose_tokens(logits_bv, settings, uniform_b, mask)


def split_heads(
    projected_nhk: Tensor, heads: int, rotation: Rotation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (n, heads, head_width), keys and values, the first two rotated."""
    shared = (projected_nhk.shape[1] - heads) // 2
    query, key, value = torch.split(projected_nhk, [heads, shared, shared], dim=1)
    if rotation is not None:
        by_head = rotation[0][:, None], rotation[1][:, None]
        query, key = rotate(query, by_head), rotate(key, by_head)
    return query, key, value


def attend_span(query_nhk: Tensor, cache: LayerCache, row: int, start: int) -> Tensor:
    """Attention of one row's queries, whose first position is ``start``; (n, heads × width)."""
    count, heads, _ = query_nhk.shape
    first = max(0, start - cache.window + 1) if cache.window else 0
    key_hsk, value_hsk = cache.read(row, first, start + count)
    mask_ns = None  # causal if the span is the whole row, and within the window
    if start or (cache.window and count > cache.window):
        seen_s = torch.arange(first, start + count, device=query_nhk.device)
        place_n1 = torch.arange(start, start + count, device=query_nhk.device)[:, None]
        mask_ns = seen_s <= place_n1
        if cache.window:
            mask_ns &= seen_s > place_n1 - cache.window
    group = heads // key_hsk.shape[0]
    mixed_hnk = F.scaled_dot_product_attention(
        query_nhk.transpose(0, 1)[None],
        key_hsk.repeat_interleave(group, dim=0)[None],
        value_hsk.repeat_interleave(group, dim=0)[None],
        attn_mask=mask_ns,
        is_causal=mask_ns is None,
    )[0]
    return mixed_hnk.transpose(0, 1).flatten(1)
