"""The KV cache in pages, so that rows of any length waste no more than a page.

A row's table lists its pages of `PAGE` tokens. Rows may share pages, such as the samples of one
prompt, and beams; a shared page is copied before a row writes to it. Layers of locally banded
attention keep only the pages that their window reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.device import HOST, is_host, moved
from lmsmith.models.config import ModelConfig

PAGE = 64
"""Tokens of a page by default."""


def pages_for(tokens: int, page: int = PAGE) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // page)


@dataclass
class LayerCache:
    """One layer's keys and values, (pages, kv_heads, page, head_width).

    ``table``, int32 (rows, pages of a row), is shared by all layers of one window. It stays on the
    processor, where pages are given out; keys and values are on the model's device.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    window: int

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.keys.shape[2]

    def store(
        self, rows_n: Tensor, positions_n: Tensor, key_nhk: Tensor, value_nhk: Tensor
    ) -> None:
        """Write tokens' keys and values."""
        pages_n = self.table[rows_n.long(), (positions_n // self.page).long()].long()
        places_n = moved((positions_n % self.page).long(), self.keys.device)
        pages_n = moved(pages_n, self.keys.device)
        self.keys[pages_n, :, places_n] = key_nhk.to(self.keys.dtype)
        self.values[pages_n, :, places_n] = value_nhk.to(self.values.dtype)

    def read(self, row: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a row's positions from start to end, (heads, end − start, width)."""
        first = start // self.page
        pages = moved(self.table[row, first : pages_for(end, self.page)].long(), self.keys.device)
        inside = slice(start - first * self.page, end - first * self.page)
        key_hsk, value_hsk = (
            part[pages].transpose(0, 1).flatten(1, 2)[:, inside]
            for part in (self.keys, self.values)
        )
        return key_hsk, value_hsk


class _Pool:
    """The pages of all layers of one window, and their users.

    Page 0 has no user. Tables begin with it, so a column that no row has filled reads zeros, and
    the padding of a decode step writes there.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: list[int],
        window: int,
        rows: int,
        pages: int,
        dtype: torch.dtype,
        page: int,
        device: torch.device,
    ) -> None:
        self.window = window
        self.table = torch.zeros(rows, pages_for(config.context, page), dtype=torch.int32)
        shape = (len(layers), 1 + pages, config.resolved_kv_heads, page, config.width_per_head)
        # One tensor for all layers, so that a page is copied at once. A page is cleared when it is
        # taken first: clearing a gigabyte at once takes a second of every core's memory bandwidth.
        # On a GPU whenever it is taken: attention reads whole pages there, and the NaN that a
        # failed row has left stays one times a probability of 0.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.keys[:, 0].zero_()
        self.values[:, 0].zero_()
        self.cleared = 1  # pages; the free ones are taken from the first on
        self.layers = {
            layer: LayerCache(self.keys[place], self.values[place], self.table, window)
            for place, layer in enumerate(layers)
        }
        self.users = [0] * (1 + pages)
        self.free = list(range(pages, 0, -1))
        self.first = [0] * rows  # first block of a row's positions that has a page
        self.after = [0] * rows  # block after its last

    @property
    def pages(self) -> int:
        """Pages that rows can have, free ones too."""
        return len(self.users) - 1

    def take(self, row: int, block: int) -> int:
        if not self.free:
            self._grow()
        page = self.free.pop()
        if page >= self.cleared or not is_host(self.keys.device):
            self.keys[:, page].zero_()
            self.values[:, page].zero_()
            self.cleared = max(self.cleared, page + 1)
        self.users[page] = 1
        self.table[row, block] = page
        return page

    def release(self, row: int, first: int, after: int) -> None:
        for page in self.table[row, first : max(first, after)].tolist():
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(page)

    def own(self, row: int, block: int, filled: int) -> None:
        """Copy a shared page's first ``filled`` tokens to a page of the row's own."""
        page = int(self.table.numpy()[row, block])  # indexing a tensor takes microseconds
        if self.users[page] > 1:
            self.users[page] -= 1
            copy = self.take(row, block)
            for part in (self.keys, self.values):
                part[:, copy, :, :filled] = part[:, page, :, :filled]

    def grow_rows(self) -> None:
        """Double the rows."""
        self.table = torch.cat([self.table, torch.zeros_like(self.table)])
        for layer in self.layers.values():
            layer.table = self.table
        self.first += [0] * len(self.first)
        self.after += [0] * len(self.after)

    def _grow(self) -> None:
        """Double the pages."""
        pages = self.pages
        self.keys, self.values = (
            torch.cat([part, torch.zeros_like(part[:, 1:])], dim=1)
            for part in (self.keys, self.values)
        )
        for place, layer in enumerate(self.layers.values()):
            layer.keys, layer.values = self.keys[place], self.values[place]
        self.users += [0] * pages
        self.free += range(2 * pages, pages, -1)


class PagedCache:
    """The cache of all layers.

    Args:
        rows, pages: at first; both double when more are needed.
        page: tokens of a page, which is the most that a forked row copies.
        device: of keys and values.

    Attributes:
        lengths: tokens that each row holds.
        layers: one view a layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        pages: int,
        dtype: torch.dtype = torch.float32,
        page: int = PAGE,
        device: torch.device = HOST,
    ) -> None:
        self.page = page
        by_window: dict[int, list[int]] = {}
        for layer in range(config.layers):
            by_window.setdefault(config.window_of(layer), []).append(layer)
        pages = max(1, pages)
        self._pools = [
            _Pool(config, layers, window, rows, pages, dtype, page, device)
            for window, layers in by_window.items()
        ]
        views = {layer: view for pool in self._pools for layer, view in pool.layers.items()}
        self.layers = [views[layer] for layer in range(config.layers)]
        self.lengths = [0] * rows
        self._free_rows = list(range(rows - 1, -1, -1))

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def pages(self) -> int:
        """Pages of all windows together, free ones too."""
        return sum(pool.pages for pool in self._pools)

    @property
    def used_pages(self) -> int:
        """Used pages of all windows together; a shared page counts once."""
        return sum(pool.pages - len(pool.free) for pool in self._pools)

    @property
    def tables(self) -> dict[int, Tensor]:
        """The table of every window, 0 for dense layers."""
        return {pool.window: pool.table for pool in self._pools}

    def open(self) -> int:
        """A row without tokens."""
        if not self._free_rows:
            self._grow_rows()
        row = self._free_rows.pop()
        self.lengths[row] = 0
        for pool in self._pools:
            pool.first[row] = pool.after[row] = 0
        return row

    def _grow_rows(self) -> None:
        rows = self.rows
        for pool in self._pools:
            pool.grow_rows()
        self.lengths += [0] * rows
        self._free_rows += range(2 * rows - 1, rows - 1, -1)

    def close(self, row: int) -> None:
        """Free a row and its pages."""
        for pool in self._pools:
            pool.release(row, pool.first[row], pool.after[row])
        self._free_rows.append(row)

    def fork(self, row: int) -> int:
        """A row with the same tokens, in the same pages."""
        copy = self.open()
        self.lengths[copy] = self.lengths[row]
        for pool in self._pools:
            first, after = pool.first[row], pool.after[row]
            pool.first[copy], pool.after[copy] = first, after
            pool.table[copy] = pool.table[row]
            for page in pool.table[row, first:after].tolist():
                pool.users[page] += 1
        return copy

    def extend(self, row: int, count: int) -> None:
        """Make room for ``count`` more tokens."""
        start, end = self.lengths[row], self.lengths[row] + count
        page, filled = self.page, start % self.page
        for pool in self._pools:
            if filled and start < pool.after[row] * page:
                pool.own(row, start // page, filled)
            for block in range(pool.after[row], pages_for(end, page)):
                pool.take(row, block)
                pool.after[row] = block + 1
            if pool.window:
                reached = max(0, start - pool.window + 1) // page
                pool.release(row, pool.first[row], min(reached, pool.after[row]))
                pool.first[row] = max(pool.first[row], reached)
        self.lengths[row] = end

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's tokens from ``length`` on, such as wrong guesses of a draft.

        They must be of the last `extend`: banded layers may have freed what an earlier end would
        see.
        """
        for pool in self._pools:
            kept = max(pages_for(length, self.page), pool.first[row])
            pool.release(row, kept, pool.after[row])
            pool.after[row] = kept
        self.lengths[row] = length
