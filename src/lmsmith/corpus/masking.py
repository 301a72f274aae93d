"""Rows for masked-token prediction (Devlin et al. 2018, section 3.1), drawn again at each step.

A batch is a pure function of (documents, settings, seed, step), so a resumed run needs no state,
and the same text is masked differently each time it is read (Liu et al. 2019, section 4.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import NO_TARGET, generator
from lmsmith.corpus.shards import TokenShards

Ids = npt.NDArray[np.int64]

Span = tuple[int, int, int]
"""Number of a document, and the first token and the one after the last in it."""


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        mask: id of the mask token.
        words: ids that may replace a hidden token: all but control tokens.
        continues: for each id, whether it goes on a word.
        fraction: share of the tokens that are predicted.
        masked, random: shares of those that become the mask, and another token; the rest stay.
        whole_words: hide all tokens of a word or none.
    """

    mask: int
    words: Ids
    continues: npt.NDArray[np.bool_]
    fraction: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    whole_words: bool = False

    def chosen(self, tokens_n: Ids, chance: np.random.Generator) -> Ids:
        """Positions to predict: ``fraction`` of the tokens, at least one, in order."""
        count = max(1, round(self.fraction * len(tokens_n)))
        if not self.whole_words:
            return np.sort(chance.permutation(len(tokens_n))[:count])
        starts = np.flatnonzero(~self.continues[tokens_n] | (np.arange(len(tokens_n)) == 0))
        ends = np.append(starts[1:], len(tokens_n))
        found: list[int] = []
        for word in chance.permutation(len(starts)):
            # A word that does not fit gives its place to shorter ones, as in BERT's own code.
            if len(found) + ends[word] - starts[word] <= count:
                found += range(starts[word], ends[word])
        if not found:
            found = list(range(starts[0], ends[0]))
        return np.sort(np.array(found, np.int64))

    def hidden(self, tokens_n: Ids, places_k: Ids, chance: np.random.Generator) -> Ids:
        """The tokens with those at ``places_k`` masked, replaced or kept."""
        result, draw_k = tokens_n.copy(), chance.random(len(places_k))
        result[places_k[draw_k < self.masked]] = self.mask
        other = (draw_k >= self.masked) & (draw_k < self.masked + self.random)
        result[places_k[other]] = chance.choice(self.words, int(other.sum()))
        return result


@dataclass(frozen=True)
class MaskedBatch:
    """Rows with hidden tokens.

    Attributes:
        tokens_bt: the encoder's input, padded at the end.
        targets_bt: the token that was here, where it is to be predicted; else `NO_TARGET`.
        segments_bt: 0 in the first sentence, 1 in the second.
        lengths_b: tokens of each row that are no padding.
        follows_b: 0 where the second sentence follows the first, 1 where it is from elsewhere;
            None without pairs.
    """

    tokens_bt: Ids
    targets_bt: Ids
    segments_bt: Ids
    lengths_b: Ids
    follows_b: Ids | None


class MaskedBatches:
    """Batches of rows of at most ``context`` tokens from documents.

    An epoch cuts every document into spans that fill a row, beginning at another place each time,
    and reads them in a fresh order. With ``pairs`` a span is cut in two at random, and the second
    part of every other one, at random, is replaced by as many tokens from another document.

    Args:
        sources: token shards, each document ``[CLS] … [SEP]``.
        shares: how often each source is read, in any unit; its size for each document once.
        cls, sep, pad: control tokens.

    Raises:
        UserError: no document has the tokens that a row needs; or, with pairs, only one has.
    """

    def __init__(
        self,
        sources: Sequence[TokenShards],
        masking: Masking,
        context: int,
        batch_size: int,
        seed: int,
        *,
        cls: int,
        sep: int,
        pad: int,
        pairs: bool = False,
        shares: Sequence[float] = (),
    ) -> None:
        self.masking, self.context, self.batch_size = masking, context, batch_size
        self._cls, self._sep, self._pad, self._pairs, self._seed = cls, sep, pad, pairs, seed
        self._documents = [
            (source, start + 1, end - 1)
            for source in sources
            for start, end in zip(source.offsets[:-1], source.offsets[1:], strict=True)
            if end - start >= 2 + (2 if pairs else 1)
        ]
        if len(self._documents) < (2 if pairs else 1):
            raise UserError(
                "masked_lm: too few documents with text to learn from",
                "give more documents"
                + (", or set masked_lm.next_sentence = false" if pairs else ""),
            )
        weights = shares or [float(source.total_tokens) for source in sources]
        self._times = {
            id(source): share / max(1, source.total_tokens)
            for source, share in zip(sources, weights, strict=True)
        }
        largest = max(self._times.values()) or 1.0
        self._times = {key: each / largest for key, each in self._times.items()}
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._starts = [0]

    def batch(self, step: int) -> MaskedBatch:
        """The batch of ``step``, counted from 0."""
        first = step * self.batch_size
        chance = generator(self._seed, 1, step)
        return self.rows([self._span(first + row) for row in range(self.batch_size)], chance)

    def rows(self, spans: Sequence[Span], chance: np.random.Generator) -> MaskedBatch:
        """Rows of these spans, each of at most ``context`` − 2 tokens, − 3 with pairs."""
        shape = len(spans), self.context
        tokens, segments = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        targets, lengths = np.full(shape, NO_TARGET, np.int64), np.zeros(len(spans), np.int64)
        follows = np.zeros(len(spans), np.int64) if self._pairs else None
        for row, (document, first, last) in enumerate(spans):
            span = self._read(document, first, last)
            cut = len(span)
            if follows is not None:
                cut = int(chance.integers(1, len(span)))
                if chance.random() < 0.5:
                    follows[row] = 1
                    other = self._elsewhere(document, len(span) - cut, chance)
                    span = np.concatenate([span[:cut], other])
            places = self.masking.chosen(span, chance)
            hidden = self.masking.hidden(span, places, chance)
            columns = np.arange(len(span)) + 1 + (np.arange(len(span)) >= cut)
            end = len(span) + 1 + (cut < len(span))
            tokens[row, 0], tokens[row, 1 + cut], tokens[row, end] = self._cls, self._sep, self._sep
            tokens[row, columns] = hidden
            targets[row, columns[places]] = span[places]
            segments[row, 2 + cut : end + 1] = 1
            lengths[row] = end + 1
        return MaskedBatch(tokens, targets, segments, lengths, follows)

    @property
    def most(self) -> int:
        """Tokens of a span."""
        return self.context - (3 if self._pairs else 2)

    def spans(self) -> list[Span]:
        """Every document in spans from its beginning, in order; nothing is drawn."""
        return [
            (number, start, end)
            for number in range(len(self._documents))
            for start, end in self._cuts(number, 0)
        ]

    def _span(self, row: int) -> Span:
        """The span of a row, counted over all epochs."""
        while self._starts[-1] <= row:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        epoch = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._epoch(epoch)[row - self._starts[epoch]]

    def _draw_epoch(self, epoch: int) -> list[Span]:
        """The spans of an epoch, in their order."""
        chance = generator(self._seed, 0, epoch)
        found: list[Span] = []
        for number, (source, _, _) in enumerate(self._documents):
            offset = int(chance.integers(0, self.most))
            if chance.random() < self._times[id(source)]:
                found += [(number, *cut) for cut in self._cuts(number, offset)]
        if not found:  # every source's share is tiny
            found = [(0, *cut) for cut in self._cuts(0, 0)]
        return [found[place] for place in chance.permutation(len(found))]

    def _cuts(self, number: int, offset: int) -> list[tuple[int, int]]:
        """A document's spans; the first is shorter by ``offset``, where the document is long."""
        _, start, end = self._documents[number]
        length, least = int(end - start), 2 if self._pairs else 1
        if length <= self.most:
            return [(0, length)]
        edges = [0, *range(self.most - offset, length, self.most), length]
        return [(a, b) for a, b in itertools.pairwise(edges) if b - a >= least]

    def _read(self, number: int, start: int, end: int) -> Ids:
        source, first, _ = self._documents[number]
        return np.asarray(source.tokens[first + start : first + end], dtype=np.int64)

    def _elsewhere(self, document: int, length: int, chance: np.random.Generator) -> Ids:
        """At most ``length`` tokens from a random place of a random other document."""
        number = int(chance.integers(len(self._documents) - 1))
        number += number >= document
        _, first, last = self._documents[number]
        start = int(chance.integers(max(1, last - first - length + 1)))
        return self._read(number, start, min(start + length, int(last - first)))
