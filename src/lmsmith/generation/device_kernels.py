"""The operations of a forward pass on a GPU: as in PyTorch, one attention for all rows that decode.

On a processor every row's attention is computed by itself, which costs a call a row; a GPU takes
as long for a small call as for a large one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.device import moved
from lmsmith.generation.kernels import Places, TorchKernels, split_heads
from lmsmith.generation.kv_cache import LayerCache, pages_for


class DeviceKernels(TorchKernels):
    """The operations in PyTorch, for devices other than the processor."""

    def attend(
        self, projected_nhk: Tensor, places: Places, cache: LayerCache, heads: int
    ) -> Tensor:
        if len(places.spans) < 2 or any(count > 1 for _, _, count in places.spans):
            return super().attend(projected_nhk, places, cache, heads)
        query_nhk, key_nhk, value_nhk = split_heads(projected_nhk, heads, places.rotation)
        cache.store(places.rows_n, places.positions_n, key_nhk, value_nhk)
        return attend_rows(query_nhk, cache, places)


def attend_rows(query_nhk: Tensor, cache: LayerCache, places: Places) -> Tensor:
    """Attention of one token of each row to those before it and itself, (n, heads × width).

    The pages of all rows are read as far as the longest row's; columns beyond a row's end, and
    those that its window has left, are masked.
    """
    device, page = query_nhk.device, cache.page
    ends = [start + 1 for _, start, _ in places.spans]
    first = min(max(0, end - cache.window) // page for end in ends) if cache.window else 0
    table_np = cache.table[places.rows_n.long(), first : pages_for(max(ends), page)].long()
    pages_np = moved(table_np, device)
    key, value = (  # (n, pages, kv_heads, page, width) → (n, kv_heads, columns, width)
        part[pages_np].transpose(1, 2).flatten(2, 3) for part in (cache.keys, cache.values)
    )
    column_s = torch.arange(first * page, first * page + key.shape[2], device=device)
    end_n1 = moved(places.positions_n.long() + 1, device)[:, None]
    seen_ns = column_s < end_n1
    if cache.window:
        seen_ns &= column_s >= end_n1 - cache.window
    group = query_nhk.shape[1] // key.shape[1]
    mixed = F.scaled_dot_product_attention(
        query_nhk[:, :, None],
        key.repeat_interleave(group, dim=1),
        value.repeat_interleave(group, dim=1),
        attn_mask=seen_ns[:, None, None],
    )
    return mixed[:, :, 0].flatten(1)
