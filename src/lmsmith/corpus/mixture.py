"""Pretraining batches: rows cut from freshly ordered documents of several sources, by step number.

A batch is a pure function of (sources, weights, seed, step), so a resumed run needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.corpus.batches import NO_TARGET, Batch, generator
from lmsmith.corpus.shards import TokenShards

SHARDS_FOLDER = "shards"
MIXTURE_FILE = "mixture.json"
"""In a pretraining stage's folder: its sources' token shards, a folder each, and the weight of
each, in the order of the folders."""

BLOCK = 1024
"""Rows in a block of the mixture: within one, sources have their shares to the row."""

_WEYL = (math.sqrt(5) - 1) / 2

Indices = npt.NDArray[np.int64]


class PretrainingBatches:
    """Batches of ``batch_size`` rows of ``context`` positions from a weighted mixture.

    Each time a source is read through (an epoch), its documents are put in a fresh order and laid
    end to end; row r of it holds the positions ``[r * context, (r + 1) * context)`` and the target
    of its last one is the token after. The rows are then read in a fresh order too, so that a
    batch is not a few documents in sequence. Every token that follows another in its document is
    a target exactly once an epoch; the last row is padded.

    Args:
        sources: documents, each framed by end-of-text.
        weights: share of rows from each source, in any unit. Met exactly in the long run, and to
            within a row for each source in every `BLOCK` rows.
        context: positions in a row.

    Raises:
        UserError: a source that is to be read is empty, or a weight is negative, or all are 0.
    """

    def __init__(
        self,
        sources: Sequence[TokenShards],
        weights: Sequence[float],
        context: int,
        batch_size: int,
        seed: int,
    ) -> None:
        if len(sources) != len(weights) or not sources:
            raise ValueError(f"{len(sources)} sources but {len(weights)} weights")
        total = math.fsum(weights)
        if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or total <= 0:
            raise UserError(f"weights of the mixture must be 0 or more, not all 0: {list(weights)}")
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True), start=1):
            if weight > 0 and source.total_tokens < 2:
                raise UserError(
                    f"source {number} of the mixture has no text", "Give it text, or weight 0."
                )
        self.context = context
        self.batch_size = batch_size
        self._seed = seed
        self._cumulative = np.cumsum(np.asarray(weights, dtype=np.float64)) / total
        self._cumulative[-1] = 1.0
        self._readers = [
            _Reader(source, context, seed, number) for number, source in enumerate(sources)
        ]
        self._block: tuple[int, Indices, Indices] | None = None

    @property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Rows that each source gives when read through once."""
        return tuple(reader.rows for reader in self._readers)

    def epochs_at(self, step: int) -> tuple[float, ...]:
        """How many times each source has been read through before `step`."""
        block, inside = divmod(step * self.batch_size, BLOCK)
        read = self._rows_before_block(block)
        if inside:
            sources, _ = self._block_rows(block)
            read = read + np.bincount(sources[:inside], minlength=len(self._readers))
        return tuple(
            float(count) / max(reader.rows, 1)
            for count, reader in zip(read, self._readers, strict=True)
        )

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        size, context = self.batch_size, self.context
        sources, rows = self._rows(step * size, (step + 1) * size)
        batch = Batch(
            tokens_bt=np.zeros((size, context), np.int64),
            targets_bt=np.full((size, context), NO_TARGET, np.int64),
            documents_bt=np.zeros((size, context), np.int32),
            positions_bt=np.zeros((size, context), np.int64),
        )
        for number in np.unique(sources):
            places = np.flatnonzero(sources == number)
            self._readers[number].read(rows[places], places, batch)
        return batch

    def _rows(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """For rows `start` to `stop` of the mixture: source, and which of that source's rows."""
        sources, rows = [], []
        for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            inside = slice(max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK))
            block_sources, block_rows = self._block_rows(block)
            sources.append(block_sources[inside])
            rows.append(block_rows[inside])
        return np.concatenate(sources), np.concatenate(rows)

    def _block_rows(self, block: int) -> tuple[Indices, Indices]:
        if self._block is None or self._block[0] != block:
            count = np.diff(self._bounds(np.array([block]))[0], prepend=0)
            sources = np.repeat(np.arange(len(count)), count)
            generator(self._seed, 0, block).shuffle(sources)
            rows = np.empty(BLOCK, np.int64)
            for number, before in enumerate(self._rows_before_block(block)):
                places = sources == number
                rows[places] = before + np.arange(count[number])
            self._block = block, sources, rows
        return self._block[1], self._block[2]

    def _rows_before_block(self, block: int) -> Indices:
        bounds: Indices = self._bounds(np.arange(block)).sum(axis=0, dtype=np.int64)
        return np.diff(bounds, prepend=0)

    def _bounds(self, blocks: Indices) -> Indices:
        """``(blocks, sources)``: how many rows of a block fall to the sources up to each.

        Source s has the points ``(j + shift) / BLOCK`` of [0, 1) that lie in its interval. The
        shift is another in each block, spread evenly over [0, 1) by a Weyl sequence, so that
        rounding evens out and shares are exact in the limit.
        """
        shift = (blocks[:, None] * _WEYL) % 1.0
        bounds: Indices = np.ceil(BLOCK * self._cumulative - shift).astype(np.int64)
        bounds = np.clip(bounds, 0, BLOCK)
        bounds[:, -1] = BLOCK
        return bounds


class _Reader:
    """The rows of one source, epoch after epoch."""

    def __init__(self, shards: TokenShards, context: int, seed: int, number: int) -> None:
        self._shards = shards
        self._context = context
        self._seed = seed
        self._number = number
        # The last token of all is only ever a target.
        self.rows = max(0, -(-(shards.total_tokens - 1) // context))
        self._orders: dict[int, tuple[Indices, Indices, Indices]] = {}

    def read(self, rows: Indices, places: Indices, batch: Batch) -> None:
        """Fill the rows `places` of `batch` with this source's `rows`, counted over all epochs."""
        epochs = rows // self.rows
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            self._read_epoch(int(epoch), rows[chosen] - epoch * self.rows, places[chosen], batch)

    def _order(self, epoch: int) -> tuple[Indices, Indices, Indices]:
        """Documents in this epoch's order, their ends when laid end to end, and order of rows."""
        if epoch not in self._orders:
            # A batch may straddle two epochs; more are not needed at once.
            self._orders = {key: self._orders[key] for key in self._orders if key == epoch - 1}
            chance = generator(self._seed, 1, self._number, epoch)
            documents = chance.permutation(len(self._shards))
            lengths = np.diff(self._shards.offsets)[documents]
            self._orders[epoch] = documents, np.cumsum(lengths), chance.permutation(self.rows)
        return self._orders[epoch]

    def _read_epoch(self, epoch: int, rows: Indices, places: Indices, batch: Batch) -> None:
        documents, ends, row_order = self._order(epoch)
        starts = row_order[rows] * self._context
        # One more than the row, for the last target; less where the source ends.
        stops = np.minimum(starts + self._context + 1, self._shards.total_tokens)
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, stops - 1, side="right")

        # One segment for each document that a row has part of: (segment,) arrays.
        count = last - first + 1
        row = np.repeat(np.arange(len(rows)), count)
        inside_row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        document = first[row] + inside_row
        document_end = ends[document]
        source_document = documents[document]
        source_start = self._shards.offsets[source_document]
        document_start = document_end - (self._shards.offsets[source_document + 1] - source_start)
        start = np.maximum(document_start, starts[row])
        stop = np.minimum(document_end, stops[row])
        length = stop - start
        physical = source_start + start - document_start
        column = start - starts[row]

        # One entry for each token of the rows: (token,) arrays.
        segment = np.repeat(np.arange(len(row)), length)
        position = np.arange(len(segment)) - np.repeat(np.cumsum(length) - length, length)
        values = self._shards.tokens[physical[segment] + position].astype(np.int64)
        columns = column[segment] + position
        rows_at = places[row][segment]

        read = columns < self._context
        batch.tokens_bt[rows_at[read], columns[read]] = values[read]
        batch.documents_bt[rows_at[read], columns[read]] = inside_row[segment][read]
        batch.positions_bt[rows_at[read], columns[read]] = position[read]
        predicted = position > 0  # the token before it in the same document is in the row
        batch.targets_bt[rows_at[predicted], columns[predicted] - 1] = values[predicted]
        for place, width, documents_in_row in zip(places, stops - starts, count, strict=True):
            if width < self._context:
                batch.documents_bt[place, width:] = documents_in_row
                batch.positions_bt[place, width:] = np.arange(self._context - width)


def read_mixture(folder: Path) -> tuple[list[TokenShards], list[float]]:
    """The sources of a pretraining stage's folder and their weights."""
    weights: Any = read_json(folder / MIXTURE_FILE)
    shards = [TokenShards.load(path) for path in sorted((folder / SHARDS_FOLDER).iterdir())]
    return shards, [float(weight) for weight in weights]
