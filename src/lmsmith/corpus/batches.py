"""Batches of packed rows: several documents or conversations side by side, none seeing another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError

NO_TARGET = -100
"""Where nothing is predicted; `torch.nn.functional.cross_entropy` ignores this index."""


@dataclass(frozen=True)
class Batch:
    """`batch_size` rows of `context` positions.

    Attributes:
        tokens_bt: int64, what the model reads.
        targets_bt: int64, the token that follows in the same document, or `NO_TARGET`.
        documents_bt: int32, which document of its row a position belongs to, counted from 0; a
            position attends only to its own. Padding is a document of its own.
        positions_bt: int64, the position inside the document as far as the row holds it, from 0.
    """

    tokens_bt: npt.NDArray[np.int64]
    targets_bt: npt.NDArray[np.int64]
    documents_bt: npt.NDArray[np.int32]
    positions_bt: npt.NDArray[np.int64]


def generator(seed: int, *names: int) -> np.random.Generator:
    """Chance that is a function of `seed` and of what it is for, so that any step can be redone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *names])))


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit packing in the order given: each item goes where it leaves the least room.

    Args:
        lengths: each at least 1, at most `capacity`. Longest first packs tightest, and the number
            of bins then does not depend on the order of equal lengths.

    Returns:
        For each bin the numbers of its items.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"item {item} has length {length}, not in 1..{capacity}")
        at = bisect.bisect_left(rooms, (length, -1))
        if at == len(rooms):
            bins.append([])
            room, chosen = capacity, len(bins) - 1
        else:
            room, chosen = rooms.pop(at)
        bins[chosen].append(item)
        bisect.insort(rooms, (room - length, chosen))
    return bins


class ConversationBatches:
    """Batches of ``batch_size`` rows of ``context`` positions, packed anew each epoch.

    Every target of every conversation is in exactly one row of an epoch. A batch is a pure
    function of the arguments and the step.

    Args:
        rows: (tokens, is_target) of each conversation, as `encode_conversation` gives them.
            Tokens after the last target are left out, since nothing is learnt from them; so is a
            conversation without any target, counted in `without_targets`.
        context: positions in a row. A conversation needs one less than its tokens.

    Raises:
        UserError: there is nothing to learn from.
        ValueError: a conversation is too long; fit it first.
    """

    def __init__(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
        context: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.context = context
        self.batch_size = batch_size
        self._seed = seed
        self._tokens: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._targets: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        for tokens, is_target in rows:
            learnt = np.flatnonzero(np.asarray(is_target, dtype=bool)[1:])
            if len(learnt) == 0:
                continue
            length = int(learnt[-1]) + 1
            if length > context:
                raise ValueError(f"a conversation needs {length} positions; there are {context}")
            kept = np.asarray(tokens[: length + 1], dtype=np.int64)
            targets = np.full(length, NO_TARGET, np.int64)
            targets[learnt] = kept[learnt + 1]
            self._tokens.append(kept[:-1])
            self._targets.append(targets)
        self.without_targets = len(rows) - len(self._tokens)
        if not self._tokens:
            raise UserError("no conversation holds anything that the assistant says")
        self._lengths = np.array([len(tokens) for tokens in self._tokens])
        self._epoch: tuple[int, list[list[int]]] = (0, self._pack(0))
        self.rows_per_epoch = len(self._epoch[1])

    @property
    def targets_per_epoch(self) -> int:
        """How many tokens an epoch teaches."""
        return sum(int((targets != NO_TARGET).sum()) for targets in self._targets)

    def epochs_at(self, step: int) -> float:
        """How many times the conversations have been read through before `step`."""
        return step * self.batch_size / self.rows_per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        size, context = self.batch_size, self.context
        batch = Batch(
            tokens_bt=np.zeros((size, context), np.int64),
            targets_bt=np.full((size, context), NO_TARGET, np.int64),
            documents_bt=np.zeros((size, context), np.int32),
            positions_bt=np.zeros((size, context), np.int64),
        )
        for place in range(size):
            epoch, row = divmod(step * size + place, self.rows_per_epoch)
            self._fill(batch, place, self._packed(epoch)[row])
        return batch

    def _fill(self, batch: Batch, place: int, conversations: Sequence[int]) -> None:
        start = 0
        for number, conversation in enumerate(conversations):
            stop = start + len(self._tokens[conversation])
            batch.tokens_bt[place, start:stop] = self._tokens[conversation]
            batch.targets_bt[place, start:stop] = self._targets[conversation]
            batch.documents_bt[place, start:stop] = number
            batch.positions_bt[place, start:stop] = np.arange(stop - start)
            start = stop
        batch.documents_bt[place, start:] = len(conversations)
        batch.positions_bt[place, start:] = np.arange(self.context - start)

    def _packed(self, epoch: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._pack(epoch)
        return self._epoch[1]

    def _pack(self, epoch: int) -> list[list[int]]:
        """Rows of an epoch: longest conversations first, equal ones in a fresh order."""
        chance = generator(self._seed, epoch)
        order = chance.permutation(len(self._lengths))
        order = order[np.argsort(-self._lengths[order], kind="stable")]
        packed = pack_best_fit(self._lengths[order].tolist(), self.context)
        return [
            [int(order[item]) for item in packed[row]] for row in chance.permutation(len(packed))
        ]
