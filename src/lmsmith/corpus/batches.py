"""Pretraining batches: rows of packed documents from weighted sources, none seeing another.

A batch is a pure function of (sources, weights, seed, step), so a resumed run needs no state.
SFT's batches are in `lmsmith.prompts.sft_rows`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.corpus.remote_tokens import RemoteTokens
from lmsmith.corpus.shards import TokenShards

NO_TARGET = -100
"""Where nothing is predicted; `torch.nn.functional.cross_entropy` ignores this index."""

SHARDS_FOLDER = "shards"
MIXTURE_FILE = "mixture.json"
"""In a pretraining stage's folder: its sources' token shards, a folder each, and the weight of
each, in the order of the folders."""

BLOCK = 1024
"""Rows in a block of the mixture: within one, sources have their shares to the row."""

LOOK_SECONDS = 1.0
"""Time between two looks for files of tokens that were written to."""

_WEYL = (math.sqrt(5) - 1) / 2

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """`batch_size` rows of `context` positions.

    Attributes:
        tokens_bt: the model's input.
        targets_bt: the token that follows in the same document, or `NO_TARGET`.
        documents_bt: the number of the position's document in its row, from 0; a position attends
            only to its own. Padding is a document of its own.
        positions_bt: the position inside the document as far as the row holds it, from 0.
    """

    tokens_bt: npt.NDArray[np.int64]
    targets_bt: npt.NDArray[np.int64]
    documents_bt: npt.NDArray[np.int32]
    positions_bt: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, batch_size: int, context: int) -> Batch:
        """Rows without tokens and targets, to be filled."""
        shape = batch_size, context
        return cls(
            np.zeros(shape, np.int64),
            np.full(shape, NO_TARGET, np.int64),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int64),
        )

    def pad(self, row: int, start: int, document: int) -> None:
        """Make the rest of a row padding: a document of its own."""
        self.documents_bt[row, start:] = document
        self.positions_bt[row, start:] = np.arange(self.positions_bt.shape[1] - start)


def generator(seed: int, *names: int) -> np.random.Generator:
    """Random numbers that depend on `seed` and `names` alone, so that any step can be redone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *names])))


class PretrainingBatches:
    """Batches of ``batch_size`` rows of ``context`` positions from a weighted mixture.

    In each epoch of a source, its documents are put in a fresh order and laid end to end; row r
    holds the positions ``[r * context, (r + 1) * context)``, and the target of its last one is the
    token after. The rows are then read in a fresh order too, so that a batch is not a few
    documents in sequence. Every token that follows another in its document is a target exactly
    once an epoch; the last row is padded.

    Args:
        weights: share of rows from each source, in any unit. Met exactly in the long run, and to
            within a row for each source in every `BLOCK` rows.
        own: the rows of a batch that this process computes. The others have their documents,
            positions and places of targets, and token 0 everywhere: they are not read.

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
        own: slice = slice(None),
    ) -> None:
        total = math.fsum(weights)
        if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or total <= 0:
            raise UserError(f"weights of the mixture must be 0 or more, not all 0: {list(weights)}")
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True), start=1):
            if weight > 0 and source.total_tokens < 2:
                raise UserError(
                    f"source {number} of the mixture has no text", "Give it text, or weight 0."
                )
        self.context, self.batch_size, self._seed = context, batch_size, seed
        self._cumulative = np.cumsum(np.asarray(weights, dtype=np.float64)) / total
        self._cumulative[-1] = 1.0
        is_own = np.zeros(batch_size, np.bool_)
        is_own[own] = True
        self._readers = [
            _Reader(source, context, seed, number, is_own) for number, source in enumerate(sources)
        ]
        self._block_rows = lru_cache(maxsize=1)(self._draw_block)
        self._looked = -math.inf  # for changes

    @property
    def is_remote(self) -> bool:
        """Whether tokens of a source are read from object storage."""
        return any(isinstance(each.shards.tokens, RemoteTokens) for each in self._readers)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0.

        Raises:
            UserError: a file of tokens was written to.
        """
        if (now := time.monotonic()) - self._looked > LOOK_SECONDS:
            self._looked = now
            for reader in self._readers:
                reader.shards.require_unchanged()
        sources, rows = self._rows(step * self.batch_size, (step + 1) * self.batch_size)
        batch = Batch.empty(self.batch_size, self.context)
        for number in np.unique(sources):
            places = np.flatnonzero(sources == number)
            self._readers[number].read(rows[places], places, batch)
        return batch

    def _rows(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """For rows `start` to `stop` of the mixture: source, and which of that source's rows."""
        first, last = start // BLOCK, (stop - 1) // BLOCK
        blocks = [self._block_rows(block) for block in range(first, last + 1)]
        inside = slice(start - first * BLOCK, stop - first * BLOCK)
        sources, rows = zip(*blocks, strict=True)
        return np.concatenate(sources)[inside], np.concatenate(rows)[inside]

    def _draw_block(self, block: int) -> tuple[Indices, Indices]:
        count = np.diff(self._bounds(np.array([block]))[0], prepend=0)
        sources = np.repeat(np.arange(len(count)), count)
        generator(self._seed, 0, block).shuffle(sources)
        read = np.diff(self._bounds(np.arange(block)).sum(axis=0, dtype=np.int64), prepend=0)
        rows = np.empty(BLOCK, np.int64)
        for number, before in enumerate(read):
            rows[sources == number] = before + np.arange(count[number])
        return sources, rows

    def _bounds(self, blocks: Indices) -> Indices:
        """``(blocks, sources)``: how many rows of a block fall to the sources up to each.

        Source s has the points ``(j + shift) / BLOCK`` of [0, 1) that lie in its interval. The
        shift is another in each block, spread evenly over [0, 1) by a Weyl sequence, so that
        rounding evens out and shares are exact in the limit.
        """
        shift = (blocks[:, None] * _WEYL) % 1.0
        bounds = np.ceil(BLOCK * self._cumulative - shift).astype(np.int64).clip(0, BLOCK)
        bounds[:, -1] = BLOCK
        return bounds


class _Reader:
    """The rows of one source, epoch after epoch."""

    def __init__(
        self,
        shards: TokenShards,
        context: int,
        seed: int,
        number: int,
        is_own: npt.NDArray[np.bool_],
    ) -> None:
        self._is_own = is_own
        self.shards, self._context, self._seed, self._number = shards, context, seed, number
        # The last token of all is only ever a target.
        self.rows = max(0, -(-(shards.total_tokens - 1) // context))
        self._order = lru_cache(maxsize=2)(self._draw_order)  # a batch may straddle two epochs

    def read(self, rows: Indices, places: Indices, batch: Batch) -> None:
        """Fill the rows ``places`` of a batch with this source's ``rows``, counted over epochs."""
        epochs = rows // self.rows
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            self._read_epoch(int(epoch), rows[chosen] - epoch * self.rows, places[chosen], batch)

    def _draw_order(self, epoch: int) -> tuple[Indices, Indices, Indices]:
        """Documents in this epoch's order, their ends when laid end to end, and order of rows."""
        chance = generator(self._seed, 1, self._number, epoch)
        documents = chance.permutation(len(self.shards))
        lengths = np.diff(self.shards.offsets)[documents]
        return documents, np.cumsum(lengths), chance.permutation(self.rows)

    def _read_epoch(self, epoch: int, rows: Indices, places: Indices, batch: Batch) -> None:
        documents, ends, row_order = self._order(epoch)
        starts = row_order[rows] * self._context
        # One more than the row, for the last target; less where the source ends.
        stops = np.minimum(starts + self._context + 1, self.shards.total_tokens)
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, stops - 1, side="right")

        # One segment for each document that a row has part of: (segment,) arrays.
        count = last - first + 1
        row = np.repeat(np.arange(len(rows)), count)
        inside_row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        document = first[row] + inside_row
        document_end = ends[document]
        source_document = documents[document]
        source_start = self.shards.offsets[source_document]
        document_start = document_end - (self.shards.offsets[source_document + 1] - source_start)
        start = np.maximum(document_start, starts[row])
        stop = np.minimum(document_end, stops[row])
        length = stop - start
        physical = source_start + start - document_start
        column = start - starts[row]

        # One entry for each token of the rows: (token,) arrays.
        segment = np.repeat(np.arange(len(row)), length)
        position = np.arange(len(segment)) - np.repeat(np.cumsum(length) - length, length)
        columns = column[segment] + position
        rows_at = places[row][segment]
        own = self._is_own[rows_at]
        values = np.zeros(len(segment), np.int64)
        values[own] = self.shards.tokens[(physical[segment] + position)[own]]

        read = columns < self._context
        batch.tokens_bt[rows_at[read], columns[read]] = values[read]
        batch.documents_bt[rows_at[read], columns[read]] = inside_row[segment][read]
        batch.positions_bt[rows_at[read], columns[read]] = position[read]
        predicted = position > 0  # the token before it in the same document is in the row
        batch.targets_bt[rows_at[predicted], columns[predicted] - 1] = values[predicted]
        for place, width, documents_in_row in zip(places, stops - starts, count, strict=True):
            if width < self._context:
                batch.pad(place, width, documents_in_row)


def write_mixture(
    folder: Path, shares: Sequence[float], outside: Mapping[Path, float] | None = None
) -> None:
    """The shares of the sources in a pretraining stage's folder, and of shards elsewhere."""
    elsewhere = [{"shards": str(path), "share": share} for path, share in (outside or {}).items()]
    (folder / SHARDS_FOLDER).mkdir(exist_ok=True)
    write_json(folder / MIXTURE_FILE, [*shares, *elsewhere])


def read_mixture(folder: Path) -> tuple[list[TokenShards], list[float]]:
    """The sources of a pretraining stage's folder, those elsewhere too, and their weights."""
    mixture: Any = read_json(folder / MIXTURE_FILE)
    inside = folder / SHARDS_FOLDER
    shards = (
        [TokenShards.load(path) for path in sorted(inside.iterdir())] if inside.exists() else []
    )
    elsewhere = [each for each in mixture if isinstance(each, dict)]
    shards += [TokenShards.load(Path(each["shards"])) for each in elsewhere]
    shares = [each for each in mixture if not isinstance(each, dict)]
    return shards, [float(share) for share in (*shares, *(each["share"] for each in elsewhere))]
