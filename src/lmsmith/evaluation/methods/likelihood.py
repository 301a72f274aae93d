"""How likely continuations are: requests whose tokens are given, put to the one scheduler.

The choices of an item are replies to one prompt, which is read once. Items with the same shots read
these once: what all of a task begin with is cached for the whole of it, and of what some have in
common each waits until another one has read it. Whatever is ready to be read goes into one packed
list, nothing padded, whichever item it is of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmsmith.evaluation.model import Pair
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.prefix_cache import common_length
from lmsmith.generation.requests import Request, TokenEvent, TokenLogProb
from lmsmith.generation.scheduler import Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings

TOKENS_AT_ONCE = 1024
"""That are read together: many enough for fast products, whose results stay in caches."""

ROWS_AT_ONCE = 256
"""Sequences that are read together at most."""

MOST_TOGETHER = 64
"""Continuations of a context that are one request."""

CACHE_BYTES = 1 << 30
"""Bytes of the cache."""

PAGE = 16
"""Tokens of its pages: a choice copies what its context has begun of one."""

LEAST_HELD = 32
"""Tokens that all prompts of a task must begin with to be cached for the whole of it."""


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation.

    Attributes:
        log_probs: of its tokens, in nats.
        greedy: whether each of them is the likeliest at its place.
        greedy_allowed: the same where the first may be no forbidden token.
    """

    log_probs: tuple[float, ...]
    greedy: bool
    greedy_allowed: bool

    @property
    def total(self) -> float:
        """log P(continuation | context), in nats."""
        return sum(self.log_probs)


class LikelihoodReader:
    """Reads pairs; keeps a prefix that many calls share.

    Args:
        model: what reads.
        forbidden: tokens that `Likelihood.greedy_allowed` leaves out at the first place.
    """

    def __init__(self, model: InferenceDecoder, forbidden: Sequence[int] = ()) -> None:
        self._scheduler = Scheduler(
            model,
            None,
            cache_bytes=CACHE_BYTES,
            rows=ROWS_AT_ONCE,
            kept_rows=ROWS_AT_ONCE,
            prompt_tokens=TOKENS_AT_ONCE,
            page=PAGE,
            grows=True,
        )
        self._bias = dict.fromkeys(forbidden, -math.inf)
        self.cache_prefix = self._scheduler.cache_prefix

    @property
    def tokens_read(self) -> int:
        """Since the reader was made."""
        return self._scheduler.tokens_read

    def read(
        self, pairs: Sequence[Pair], on_tokens: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """The likelihood of each pair's continuation.

        Args:
            on_tokens: told how many tokens have been read since the reader was made.
        """
        order = sorted(range(len(pairs)), key=lambda number: _context(pairs[number]))
        requests: list[Request] = []
        owners: list[list[int]] = []
        settings: dict[int, SamplingSettings] = {}
        for context, group in itertools.groupby(order, key=lambda n: _context(pairs[n])):
            same = list(group)
            for start in range(0, len(same), MOST_TOGETHER):
                part = same[start : start + MOST_TOGETHER]
                forced = tuple(pairs[number].tokens[len(context) :] for number in part)
                count = len(part)
                if count not in settings:
                    settings[count] = SamplingSettings(
                        max_new_tokens=1 << 30,
                        temperature=0.0,
                        samples=count,
                        log_probs=True,
                        logit_bias=self._bias,
                    )
                requests.append(Request(context, settings[count], forced=forced))
                owners.append(part)
        numbers = self._scheduler.submit_all(requests)
        found: list[list[TokenLogProb]] = [[] for _ in pairs]
        while self._scheduler.busy:
            for event in self._scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, TokenEvent) and event.log_prob is not None:
                    owner = owners[event.request - numbers[0]][event.sample]
                    found[owner].append(event.log_prob)
            if on_tokens is not None:
                on_tokens(self.tokens_read)
        self._scheduler.forget()
        return [_likelihood(each) for each in found]


def _context(pair: Pair) -> tuple[int, ...]:
    return pair.tokens[: len(pair.tokens) - pair.scored]


def _likelihood(tokens: Sequence[TokenLogProb]) -> Likelihood:
    greedy = [bool(each.greedy) for each in tokens]
    allowed = bool(tokens[0].greedy_allowed) and all(greedy[1:])
    return Likelihood(tuple(each.log_prob for each in tokens), all(greedy), allowed)


def shared_prefix(pairs: Sequence[Pair], least: int = LEAST_HELD) -> tuple[int, ...]:
    """The tokens that all pairs begin with, before any continuation; none if they are few."""
    return common_prefix([pair.tokens[: len(pair.tokens) - pair.scored] for pair in pairs], least)


def common_prefix(prompts: Sequence[Sequence[int]], least: int = LEAST_HELD) -> tuple[int, ...]:
    """The tokens that all begin with, the last of none among them; none if they are few."""
    if len(prompts) < 2:
        return ()
    in_order = sorted(map(tuple, prompts))
    shared = common_length(in_order[0], in_order[-1])
    shared = min(shared, min(map(len, in_order)) - 1)
    return in_order[0][:shared] if shared >= least else ()
