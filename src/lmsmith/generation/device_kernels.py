"""The operations of a forward pass on a GPU: as in PyTorch, one attention for all rows that decode.

On a processor every row's attention is computed by itself, which costs a call a row; a GPU takes
as long for a small call as for a large one. So all that a decode step reads is one tensor of
numbers, moved to the device once. Operations and addresses then depend on its shape alone: a CUDA
graph can repeat them (`decode_graphs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.generation.kernels import TorchKernels, split_heads
from lmsmith.generation.kv_cache import LayerCache, PagedCache, pages_for
from lmsmith.models.positions import Rotation


class DecodeStep:
    """One more token of each of n rows, whose cache grows by it.

    Attributes:
        rows, tokens, positions: of the n tokens.
        pages: that the longest row has.
    """

    def __init__(self, spans: Sequence[tuple[int, Sequence[int]]], cache: PagedCache) -> None:
        self._cache = cache
        self.rows = [row for row, _ in spans]
        self.tokens = [token for _, (token,) in spans]
        self.positions = [cache.lengths[row] for row in self.rows]
        for row in self.rows:
            cache.extend(row, 1)
        self.pages = pages_for(max(self.positions) + 1, cache.page)

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, rows: int, pages: int) -> Tensor:
        """All of it as int64 (rows, columns): token, position, and a row's pages in each window.

        ``rows`` beyond the step's are padding, which reads and writes the page of nobody; so are
        ``pages`` beyond a row's own.
        """
        cache, count = self._cache, len(self)
        rows_n1, positions_n = torch.tensor(self.rows)[:, None], torch.tensor(self.positions)
        parts = [torch.tensor(self.tokens)[:, None], positions_n[:, None]]
        for window, width in widths(cache, pages).items():
            table, last_n = cache.tables[window], positions_n // cache.page
            blocks_np = first_blocks(positions_n, window, cache.page)[:, None] + torch.arange(width)
            beyond_np = blocks_np > last_n[:, None]
            parts.append(table[rows_n1, blocks_np.masked_fill(beyond_np, 0)])
            parts[-1][beyond_np] = 0
        numbers_nc = torch.cat(parts, dim=1)
        return F.pad(numbers_nc, (0, 0, 0, rows - count))


@dataclass(frozen=True)
class WindowPlaces:
    """Places of a step in the layers of one window."""

    table_np: Tensor  # int64, pages that each row reads
    pages_n: Tensor  # int64, page that each token's keys and values go to
    seen_ns: Tensor  # bool, columns of those pages that each token sees


@dataclass(frozen=True)
class DecodePlaces:
    """Places of one token of each of n rows, on the device."""

    tokens_n: Tensor  # int64
    positions_n: Tensor  # int64
    slots_n: Tensor  # int64, place in its page of each token
    windows: dict[int, WindowPlaces]

    @classmethod
    def of(cls, numbers_nc: Tensor, pages: int, cache: PagedCache) -> DecodePlaces:
        """Places of `DecodeStep.numbers`; operations on the device alone."""
        tokens_n, positions_n = numbers_nc[:, 0], numbers_nc[:, 1]
        page, device, at = cache.page, numbers_nc.device, 2
        windows = {}
        for window, width in widths(cache, pages).items():
            table_np = numbers_nc[:, at : at + width]
            at += width
            first_n = first_blocks(positions_n, window, page)
            pages_n = table_np.gather(1, (positions_n // page - first_n)[:, None])[:, 0]
            columns_ns = first_n[:, None] * page + torch.arange(width * page, device=device)
            seen_ns = columns_ns <= positions_n[:, None]
            if window:
                seen_ns &= columns_ns > positions_n[:, None] - window
            windows[window] = WindowPlaces(table_np, pages_n, seen_ns)
        return cls(tokens_n, positions_n, positions_n % page, windows)


def widths(cache: PagedCache, pages: int) -> dict[int, int]:
    """Pages of a row that a step reads in the layers of each window."""
    return {
        window: min(pages, pages_for(window, cache.page) + 1) if window else pages
        for window in cache.tables
    }


def first_blocks(positions_n: Tensor, window: int, page: int) -> Tensor:
    """The first page of its row that each token sees; of dense layers, 0."""
    if not window:
        return torch.zeros_like(positions_n)
    return (positions_n + 1 - window).clamp(min=0) // page


class DeviceKernels(TorchKernels):
    """The operations in PyTorch, for devices other than the processor."""

    def attend_rows(
        self,
        projected_nhk: Tensor,
        places: DecodePlaces,
        rotation: Rotation | None,
        cache: LayerCache,
        heads: int,
    ) -> Tensor:
        """`attend` for one token of each row, (n, heads × width).

        Columns beyond a row's end, and those that its window has left, are masked.
        """
        query_nhk, key_nhk, value_nhk = split_heads(projected_nhk, heads, rotation)
        own = places.windows[cache.window]
        for part, new_nhk in ((cache.keys, key_nhk), (cache.values, value_nhk)):
            part[own.pages_n, :, places.slots_n] = new_nhk.to(part.dtype)
        key, value = (  # (n, pages, kv_heads, page, width) → (n, kv_heads, columns, width)
            part[own.table_np].transpose(1, 2).flatten(2, 3) for part in (cache.keys, cache.values)
        )
        # Heads that share keys are one head with a query each: no key is copied for them.
        query = query_nhk.view(len(query_nhk), key.shape[1], -1, key.shape[-1])
        mask = own.seen_ns[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).flatten(1)
