"""Sentences in two languages, line by line, as batches for an encoder–decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_text
from lmsmith.corpus.batches import NO_TARGET

Ints = npt.NDArray[np.int64]


class Pair(NamedTuple):
    """A sentence and its translation, as texts or as tokens."""

    source: str
    target: str


class EncodedPair(NamedTuple):
    """The tokens of both, each with its end token."""

    source: list[int]
    target: list[int]


def read_parallel(source: Path, target: Path) -> tuple[list[Pair], int]:
    """Pairs of two text files, plain or ``.gz``, of which line n of one translates line n of the
    other; and how many were left out because a side is empty.

    Raises:
        UserError: a file cannot be read, they have unequal numbers of lines, or no pair is left.
    """
    sources, targets = _lines(source), _lines(target)
    if len(sources) != len(targets):
        raise UserError(
            f"{source} has {len(sources):,} lines and {target} has {len(targets):,}",
            "line n of one must translate line n of the other: give two files of equal length",
        )
    pairs = [Pair(*each) for each in zip(sources, targets, strict=True)]
    full = [pair for pair in pairs if pair.source and pair.target]
    if not full:
        raise UserError(f"{source} and {target}: no line has text in both", "name other files")
    return full, len(pairs) - len(full)


def _lines(path: Path) -> list[str]:
    """Lines without the space around them; only a line feed ends one (U+2028 does not)."""
    text = read_text(path)
    lines = text.split("\n")
    return [line.strip() for line in (lines[:-1] if text.endswith("\n") else lines)]


@dataclass(frozen=True)
class PairBatch:
    """Pairs padded to the longest.

    Attributes:
        source_bs: token ids, 0 in the padding.
        lengths_b: tokens of each source that are no padding; None where there is no padding.
        inputs_bt: the decoder's: the start token, and the target without its last token.
        targets_bt: token ids, `NO_TARGET` in the padding.
    """

    source_bs: Ints
    lengths_b: Ints | None
    inputs_bt: Ints
    targets_bt: Ints

    @property
    def tokens(self) -> int:
        """Tokens of sources and targets, without padding."""
        sources = self.source_bs.size if self.lengths_b is None else int(self.lengths_b.sum())
        return sources + int((self.targets_bt != NO_TARGET).sum())


class PairBatches:
    """Batches of about equally many tokens, of pairs of like length (section 5.1).

    Pairs are sorted by length, those of equal length by chance; the batches come in random order.

    Args:
        pairs: to learn from.
        most: source tokens of a batch, and target tokens, padding included; a longer pair is
            alone.
        start_token: the decoder's first input.
        seed: of all chance.
    """

    def __init__(
        self, pairs: Sequence[EncodedPair], most: int, start_token: int, seed: int
    ) -> None:
        self._pairs, self._start, self._seed = pairs, start_token, seed
        self._lengths = np.array([[len(p.source), len(p.target)] for p in pairs]).reshape(-1, 2)
        order = np.lexsort((self._lengths[:, 1], self._lengths[:, 0]))
        self._cuts = _cuts(self._lengths[order], most)
        self._epoch, self._order, self._turns = -1, order, np.arange(0)

    @property
    def per_epoch(self) -> int:
        """Batches of a pass over all pairs."""
        return len(self._cuts) - 1

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            chance = generator.random(len(self._pairs))
            self._order = np.lexsort((chance, self._lengths[:, 1], self._lengths[:, 0]))
            self._turns, self._epoch = generator.permutation(self.per_epoch), epoch
        turn = self._turns[place]
        chosen = self._order[self._cuts[turn] : self._cuts[turn + 1]]
        return make_batch([self._pairs[index] for index in chosen], self._start)


def _cuts(sorted_lengths: Ints, most: int) -> list[int]:
    """Where batches begin, and the end of the last."""
    cuts, longest = [0], np.zeros(2, dtype=np.int64)
    for place, lengths in enumerate(sorted_lengths):
        longest = np.maximum(longest, lengths)
        if place > cuts[-1] and longest.max() * (place + 1 - cuts[-1]) > most:
            cuts.append(place)
            longest = lengths
    return [*cuts, len(sorted_lengths)]


def make_batch(pairs: Sequence[EncodedPair], start_token: int) -> PairBatch:
    """Pad these pairs to the longest of them."""
    source_bs, lengths = padded([pair.source for pair in pairs], 0)
    targets_bt, _ = padded([pair.target for pair in pairs], NO_TARGET)
    inputs_bt = np.roll(targets_bt, 1, axis=1)
    inputs_bt[inputs_bt == NO_TARGET] = 0
    inputs_bt[:, 0] = start_token
    same = (lengths == source_bs.shape[1]).all()
    return PairBatch(source_bs, None if same else lengths, inputs_bt, targets_bt)


def padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Ints, Ints]:
    """Rows padded on the right to the longest, and their lengths."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    table = np.full((len(rows), int(lengths.max())), filler, dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table, lengths
