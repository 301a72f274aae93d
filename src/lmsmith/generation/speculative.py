"""Speculative decoding: guesses of what a reply will be, which the model reads in one forward pass.

The scheduler draws the token in each place as it would without guesses, with the same random
number, and goes on to the next place where the token is the guess (`Scheduler`). So a guess is
accepted with the probability that the model gives it, the most that is possible for a certain guess
(Leviathan et al. 2023), and the reply does not depend on what was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from lmsmith.generation.inference import InferenceDecoder, Span
from lmsmith.generation.kv_cache import PAGE, PagedCache, pages_for
from lmsmith.generation.requests import RunningSequence

PROMPT_LOOKUP = "prompt-lookup"
"""Name of the draft that needs no model."""

DRAFT_TOKENS = 16_384
"""Maximum number of tokens of all replies together that a `DraftModel` holds."""

MAX_GUESSED_REPLIES = 4
"""Replies in progress beyond which nothing is guessed: guesses cost computation in a batch."""


class Drafter(Protocol):
    """Guesses the next tokens of replies."""

    def guess(self, replies: Sequence[RunningSequence], counts: Sequence[int]) -> list[list[int]]:
        """At most ``counts`` tokens that may follow each reply's ``tokens``."""

    def forget(self, reply: RunningSequence) -> None:
        """Free what is held for a reply; nothing more of it will be guessed."""


@dataclass
class _Index:
    """The places after each run of tokens, the last one alone; ``read`` tokens are in it."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    read: int = 1


class PromptLookup:
    """Guesses what followed the last occurrence of the text's last tokens; needs no model.

    Args:
        longest, shortest: numbers of last tokens that are searched; longer ones first.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._indices: WeakKeyDictionary[RunningSequence, _Index] = WeakKeyDictionary()

    def guess(self, replies: Sequence[RunningSequence], counts: Sequence[int]) -> list[list[int]]:
        return [self._guess(*each) for each in zip(replies, counts, strict=True)]

    def _guess(self, reply: RunningSequence, count: int) -> list[int]:
        text, index = reply.tokens, self._indices.setdefault(reply, _Index())
        for place in range(index.read, len(text)):
            for size in self._sizes:
                if size <= place:
                    index.places[tuple(text[place - size : place])] = place
        index.read = max(index.read, len(text))
        for size in self._sizes:
            found = index.places.get(tuple(text[-size:]))
            if found is not None:
                guessed = text[found : found + count]
                while len(guessed) < count:  # the text repeats itself up to its end
                    guessed.append(guessed[found - len(text)])
                return guessed
        return []

    def forget(self, reply: RunningSequence) -> None:
        self._indices.pop(reply, None)


class DraftModel:
    """Guesses the likeliest tokens by a smaller model of the same vocabulary.

    Args:
        model: the smaller model.
        tokens: maximum number of tokens that its cache holds; a reply without room gets no guesses.
    """

    def __init__(self, model: InferenceDecoder, tokens: int = DRAFT_TOKENS) -> None:
        config = model.config
        # A page more for each reply, since guesses are read in a copy of its row.
        self._pages = pages_for(min(tokens, MAX_GUESSED_REPLIES * config.context))
        self._pages += MAX_GUESSED_REPLIES
        self.cache = PagedCache(
            config, 2 * MAX_GUESSED_REPLIES, self._pages, model.dtype, device=model.device
        )
        self._model = model
        self._rows: dict[RunningSequence, int] = {}

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        return (
            self._pages
            * PAGE
            * self._model.config.cache_bytes_per_token(self._model.dtype.itemsize)
        )

    def guess(self, replies: Sequence[RunningSequence], counts: Sequence[int]) -> list[list[int]]:
        guesses: dict[RunningSequence, list[int]] = {reply: [] for reply in replies}
        wanted, free = dict[RunningSequence, int](), self._pages
        for reply, count in zip(replies, counts, strict=True):
            length = len(reply.tokens) + count
            pages = pages_for(length) + 1
            if count > 0 and length <= self._model.config.context and pages <= free:
                wanted[reply], free = count, free - pages
        for reply in [each for each in self._rows if each not in wanted]:
            self.forget(reply)
        spans: list[Span] = []
        for reply in wanted:
            if reply not in self._rows:
                self._rows[reply] = self.cache.open()
            row = self._rows[reply]
            spans.append((row, reply.tokens[self.cache.lengths[row] :]))
        copies = dict[RunningSequence, int]()
        while wanted:
            hidden_nd = self._model.read(spans, self.cache)
            ends_r = torch.tensor([len(tokens) for _, tokens in spans]).cumsum(0) - 1
            likeliest = self._model.logits(hidden_nd[ends_r]).argmax(dim=-1).tolist()
            for reply, token in zip(wanted, likeliest, strict=True):
                guesses[reply].append(token)
            wanted = {reply: n for reply, n in wanted.items() if len(guesses[reply]) < n}
            for reply in wanted:
                if reply not in copies:
                    copies[reply] = self.cache.fork(self._rows[reply])
            spans = [(copies[reply], guesses[reply][-1:]) for reply in wanted]
        for row in copies.values():
            self.cache.close(row)
        return [guesses[reply] for reply in replies]

    def forget(self, reply: RunningSequence) -> None:
        if reply in self._rows:
            self.cache.close(self._rows.pop(reply))
