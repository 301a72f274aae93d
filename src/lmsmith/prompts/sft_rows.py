"""SFT's rows: conversations cut into windows with their loss mask, and packed into batches.

The loss mask (``is_target``) marks the tokens that the model learns to produce: the assistant's
content and the token that ends its turn, not the role token, which a prompt ends with.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import NO_TARGET, Batch, generator
from lmsmith.corpus.messages import Message
from lmsmith.prompts.chat import encode_turns, split_system, turn_starts
from lmsmith.tokenizers import EncodedChat, Tokenizer

Window: TypeAlias = tuple[list[int], list[bool]]
"""Tokens, and for each whether it is a target: the loss mask."""


def conversation_windows(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    limit: int,
    history: int,
    counts: Counter[str] | None = None,
) -> list[Window]:
    """Windows of a conversation; those in which nothing is a target are left out.

    A window ends at the last message that fits beside up to ``history`` tokens of earlier
    messages, which are repeated there without loss; the system message opens every window. So
    each of the assistant's messages is a target in one window, with what came before it in sight.
    The message it answers is repeated whatever its length, and the reply loses its end if need be;
    a reply beside which that message does not fit is left out.

    Where a template ends no reply but the last, every reply has a window of its own: in one with
    others, only the last would be seen to end.

    Args:
        limit: most tokens of a window (the context).
        history: most tokens of earlier messages repeated at a window's start.
        counts: gets the numbers of replies that are cut (``replies_cut``), that are left out for
            want of room for what they answer (``replies_without_question``), and that a template
            does not write (``replies_not_written``).
    """
    counts = counts if counts is not None else Counter()
    if not tokenizer.is_own:
        return _windows_by_template(tokenizer, messages, limit, history, counts)
    opening, turns = encode_turns(tokenizer, messages)
    learnt = [message["role"] == "assistant" for message in split_system(messages)[1]]
    room = limit - len(opening)
    windows: list[Window] = []
    start = 0
    while start < len(turns):
        first, left = start, min(history, room - len(turns[start]))
        while first > 0 and len(turns[first - 1]) <= left:
            first -= 1
            left -= len(turns[first])
        if learnt[start] and first == start > 0:
            if room - len(turns[start - 1]) < 2:  # the reply's role token and one of content
                counts["replies_without_question"] += 1
                start += 1
                continue
            first = start - 1
        tokens = [*opening, *chain(*turns[first:start])]
        is_target = [False] * len(tokens)
        end = start
        while end < len(turns) and (end == start or len(tokens) + len(turns[end]) <= limit):
            tokens += turns[end]
            is_target += [False, *[learnt[end]] * (len(turns[end]) - 1)]
            end += 1
        if any(is_target[:limit]):  # a message longer than the context loses its end
            windows.append((tokens[:limit], is_target[:limit]))
            counts["replies_cut"] += any(is_target[limit:])
        elif learnt[start]:
            counts["replies_without_question"] += 1
        start = end
    return windows


def _windows_by_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    limit: int,
    history: int,
    counts: Counter[str],
) -> list[Window]:
    whole = _ended(tokenizer, messages)
    replies = {n for n, message in enumerate(messages) if message["role"] == "assistant"}
    counts["replies_not_written"] += len(replies - set(whole.authors))
    finals = {author: token for token, author in zip(whole.tokens, whole.authors, strict=True)}
    alone = any(token not in tokenizer.stop_tokens for n, token in finals.items() if n >= 0)
    if len(whole.tokens) <= limit and not alone:
        is_target = [author >= 0 for author in whole.authors]
        return [(whole.tokens, is_target)] if any(is_target) else []
    system, turns = split_system(messages)
    lengths = [len(ids) for ids in tokenizer.encode_batch([t["content"] for t in turns])]
    windows: list[Window] = []
    start = 0
    while start < len(turns):
        last = len(turns)
        if alone:
            last = next((n for n in range(start, last) if len(system) + n in replies), last - 1) + 1
        starts = [s for s in turn_starts(turns) if s <= start]
        allowed = (s for s in starts if sum(lengths[s:start]) <= history)
        for first in (min(allowed, default=starts[-1]), starts[-1]):  # with its history, or without
            encoded, end = _longest_window(tokenizer, system, turns[:last], first, start, limit)
            if end > start:
                break
        else:  # too long by itself: it is cut
            end = start + 1
            encoded = _ended(tokenizer, system + turns[first:end])
        from_message = len(system) + start - first
        is_target = [author >= from_message for author in encoded.authors]
        if any(is_target[:limit]):
            windows.append((encoded.tokens[:limit], is_target[:limit]))
            counts["replies_cut"] += any(is_target[limit:])
        elif any(is_target):
            counts["replies_without_question"] += 1
        start = end
    return windows


def _ended(tokenizer: Tokenizer, messages: Sequence[Message]) -> EncodedChat:
    """The conversation, with an end of turn after a last reply where the template writes none."""
    encoded = tokenizer.encode_chat(messages, ask=False)
    last = len(messages) - 1
    if last not in encoded.authors:
        return encoded
    end = len(encoded.authors) - encoded.authors[::-1].index(last)
    if encoded.tokens[end - 1] in tokenizer.stop_tokens:
        return encoded
    return EncodedChat(
        [*encoded.tokens[:end], tokenizer.end_of_turn], [*encoded.authors[:end], last]
    )


def _longest_window(
    tokenizer: Tokenizer,
    system: list[Message],
    turns: list[Message],
    first: int,
    start: int,
    limit: int,
) -> tuple[EncodedChat, int]:
    """Turns from ``first`` to the last that fits; nothing and ``start`` if not one does."""
    best, end = EncodedChat([], []), start
    while end < len(turns):
        longer = _ended(tokenizer, system + turns[first : end + 1])
        if len(longer.tokens) > limit:
            break
        best, end = longer, end + 1
    return best, end


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The numbers of the items in each bin, by best fit: an item goes where it leaves least room.

    Longest first packs tightest, and then the order of equal lengths does not change the number
    of bins.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"item {item} has length {length}, not in 1..{capacity}")
        at = bisect.bisect_left(rooms, (length, -1))
        if at == len(rooms):
            rooms.append((capacity, len(bins)))
            bins.append([])
        room, chosen = rooms.pop(at)
        bins[chosen].append(item)
        bisect.insort(rooms, (room - length, chosen))
    return bins


class SFTBatches:
    """Batches of ``batch_size`` rows of ``context`` positions, packed anew each epoch.

    Every target of every window is in exactly one row of an epoch. A batch is a pure function of
    the arguments and the step.

    Args:
        windows: tokens after the last target are left out, since nothing is learnt from them; so
            is a window without any target.
        context: positions in a row. A window needs one less than its tokens.

    Raises:
        UserError: there is nothing to learn from.
        ValueError: a window is too long.
    """

    def __init__(
        self,
        windows: Sequence[tuple[Sequence[int], Sequence[bool]]],
        context: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.context, self.batch_size, self._seed = context, batch_size, seed
        self._tokens: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._targets: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        for tokens, is_target in windows:
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
        if not self._tokens:
            raise UserError("no conversation holds anything that the assistant says")
        self._lengths = np.array([len(tokens) for tokens in self._tokens])
        self._packed = lru_cache(maxsize=1)(self._pack)
        self.rows_per_epoch = len(self._packed(0))

    @property
    def targets_per_epoch(self) -> int:
        """How many tokens an epoch teaches."""
        return sum(int((targets != NO_TARGET).sum()) for targets in self._targets)

    def epochs_at(self, step: int) -> float:
        """How many times the windows have been read through before `step`."""
        return step * self.batch_size / self.rows_per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        batch = Batch.empty(self.batch_size, self.context)
        for place in range(self.batch_size):
            epoch, row = divmod(step * self.batch_size + place, self.rows_per_epoch)
            start, packed = 0, self._packed(epoch)[row]
            for number, window in enumerate(packed):
                stop = start + len(self._tokens[window])
                batch.tokens_bt[place, start:stop] = self._tokens[window]
                batch.targets_bt[place, start:stop] = self._targets[window]
                batch.documents_bt[place, start:stop] = number
                batch.positions_bt[place, start:stop] = np.arange(stop - start)
                start = stop
            batch.pad(place, start, len(packed))
        return batch

    def _pack(self, epoch: int) -> list[list[int]]:
        """Rows of an epoch: longest windows first, equal ones in a fresh order."""
        chance = generator(self._seed, epoch)
        order = chance.permutation(len(self._lengths))
        order = order[np.argsort(-self._lengths[order], kind="stable")]
        packed = pack_best_fit(self._lengths[order].tolist(), self.context)
        return [
            [int(order[item]) for item in packed[row]] for row in chance.permutation(len(packed))
        ]
