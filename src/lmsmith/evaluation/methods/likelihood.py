"""How likely continuations are, with everything that several share read once.

The tokens of a batch stand in a tree of common prefixes (`prefix_tree`). As many of its nodes as
are worth it are read together in one packed list, nothing padded, each from its parent's pages of
the cache, whichever item and level they are of. So the choices of an item read its context once,
and items with the same shots read these once, whatever the kind of task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmsmith.evaluation.methods.prefix_tree import Node, build_tree
from lmsmith.evaluation.model import Pair
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.generation.log_probs import LOGITS_AT_ONCE
from lmsmith.generation.prefix_cache import common_length

TOKENS_AT_ONCE = 1024
"""Tokens of nodes that are read together: enough for fast products that stay in caches."""

ROWS_AT_ONCE = 256
"""Nodes that are read together at most."""

FIRST_PAGES = 128
"""First size of the cache, which grows with the requests."""

PAGE = 16
"""Tokens of its pages: a choice copies what its context has begun of one."""

LEAST_HELD = 32
"""Tokens that all prompts of a task must begin with to be held for the whole of it."""


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of a continuation.

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


@dataclass
class _Parent:
    """What nodes go on from: a row, or nothing, and how many children are still to begin.

    A row without a number of children is kept.
    """

    row: int | None
    children: int | None


@dataclass
class _Found:
    log_probs: list[float] = field(default_factory=list)
    greedy: bool = True
    greedy_allowed: bool = True


class LikelihoodReader:
    """Reads pairs; keeps a prefix that many calls share.

    Args:
        model: what reads.
        forbidden: tokens that `Likelihood.greedy_allowed` leaves out at the first place.
    """

    def __init__(self, model: InferenceDecoder, forbidden: Sequence[int] = ()) -> None:
        self._model = model
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.long)
        self._cache = PagedCache(
            model.config, 2 * ROWS_AT_ONCE, FIRST_PAGES, model.dtype, page=PAGE
        )
        self._held: tuple[int, ...] = ()
        self._held_row: int | None = None
        self.tokens_read = 0

    def cache_prefix(self, tokens: Sequence[int]) -> None:
        """Read a prefix once for all calls to come whose pairs begin with it."""
        if self._held_row is not None:
            self._cache.close(self._held_row)
        self._held, self._held_row = tuple(tokens), None
        if self._held:
            self._held_row = self._cache.open()
            self._read([(self._held_row, self._held)])

    def read(
        self, pairs: Sequence[Pair], on_tokens: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """The likelihood of each pair's continuation.

        Args:
            on_tokens: told how many tokens have been read since the reader was made.
        """
        state = _Reading(pairs, [_Found() for _ in pairs], on_tokens)
        sequences = [pair.tokens[:-1] for pair in pairs]
        held, row = len(self._held), self._held_row
        with_held = [
            number
            for number, pair in enumerate(pairs)
            if held and len(pair.tokens) - pair.scored > held and pair.tokens[:held] == self._held
        ]
        others = sorted(set(range(len(pairs))) - set(with_held))
        for numbers, start, parent in ((with_held, held, row), (others, 0, None)):
            if numbers:
                roots = build_tree([sequences[number] for number in numbers], start)
                _renumber(roots, numbers)
                self._read_tree(roots, _Parent(parent, None), state)
        return [
            Likelihood(tuple(each.log_probs), each.greedy, each.greedy_allowed)
            for each in state.found
        ]

    def _read_tree(self, roots: Sequence[Node], before: _Parent, state: _Reading) -> None:
        """Read nodes and all below them; children first, so that few rows are open."""
        ready = [(root, before) for root in reversed(roots)]
        while ready:
            nodes: list[tuple[Node, int]] = []
            size = 0
            while ready and len(nodes) < ROWS_AT_ONCE:
                node, parent = ready[-1]
                size += len(node.tokens)
                if nodes and size > TOKENS_AT_ONCE:
                    break
                ready.pop()
                nodes.append((node, self._row_after(parent)))
            self._read_nodes(nodes, state)
            for node, row in reversed(nodes):
                if not node.children:
                    self._cache.close(row)
                parent = _Parent(row, len(node.children))
                ready += [(child, parent) for child in reversed(node.children)]

    def _row_after(self, parent: _Parent) -> int:
        """A row with the parent's past: the parent's own for its last child."""
        if parent.row is None:
            return self._cache.open()
        if parent.children is not None:
            parent.children -= 1
            if not parent.children:
                return parent.row
        return self._cache.fork(parent.row)

    def _read_nodes(self, nodes: Sequence[tuple[Node, int]], state: _Reading) -> None:
        hidden_nd = self._read([(row, node.tokens) for node, row in nodes])
        state.tell(self.tokens_read)
        wanted: list[_Wanted] = []
        at = 0
        for node, _ in nodes:
            wanted += state.wanted_of(node, at)
            at += len(node.tokens)
        self._look_up(hidden_nd, wanted, state)

    def _read(self, spans: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        self.tokens_read += sum(len(tokens) for _, tokens in spans)
        return self._model.read(spans, self._cache)

    @torch.inference_mode()
    def _look_up(self, hidden_nd: Tensor, wanted: Sequence[_Wanted], state: _Reading) -> None:
        """Log-probabilities of the wanted tokens; a place that several want is computed once."""
        by_place: dict[int, list[_Wanted]] = {}
        for each in wanted:
            by_place.setdefault(each.place, []).append(each)
        places = sorted(by_place)  # a pair's tokens in their order
        for start in range(0, len(places), LOGITS_AT_ONCE):
            part = places[start : start + LOGITS_AT_ONCE]
            logits_pv = self._model.raw_logits(hidden_nd[torch.tensor(part)])
            log_sum_p, best_p = self._model.kernels.log_sums(logits_pv)
            each_n = [each for place in part for each in by_place[place]]
            row_n = torch.tensor([row for row, place in enumerate(part) for _ in by_place[place]])
            token_n = torch.tensor([each.token for each in each_n])
            log_prob_n = logits_pv[row_n, token_n].float() - log_sum_p[row_n]
            best_n = (best_p[row_n] == token_n).tolist()
            allowed_n = best_n
            if len(self._forbidden):
                logits_pv[:, self._forbidden] = -torch.inf
                allowed_n = (logits_pv.argmax(dim=-1)[row_n] == token_n).tolist()
            state.take(each_n, log_prob_n.tolist(), best_n, allowed_n)


@dataclass(frozen=True)
class _Wanted:
    """A token that a pair wants to know the probability of, after the token at ``place``."""

    place: int  # in the packed list
    token: int
    pair: int
    first: bool


@dataclass
class _Reading:
    """One call: what is asked, and what has been found."""

    pairs: Sequence[Pair]
    found: list[_Found]
    on_tokens: Callable[[int], None] | None

    def tell(self, tokens: int) -> None:
        if self.on_tokens is not None:
            self.on_tokens(tokens)

    def wanted_of(self, node: Node, at: int) -> list[_Wanted]:
        """What pairs want to know of a node whose tokens stand from ``at`` on."""
        wanted = []
        end = node.start + len(node.tokens)
        for number in node.sequences:
            pair = self.pairs[number]
            first = len(pair.tokens) - pair.scored - 1  # position before the continuation
            for position in range(max(first, node.start), min(end, len(pair.tokens) - 1)):
                token = pair.tokens[position + 1]
                place = at + position - node.start
                wanted.append(_Wanted(place, token, number, position == first))
        return wanted

    def take(
        self,
        wanted: Sequence[_Wanted],
        log_probs: Sequence[float],
        best: Sequence[bool],
        allowed: Sequence[bool],
    ) -> None:
        for each, log_prob, is_best, is_allowed in zip(
            wanted, log_probs, best, allowed, strict=True
        ):
            found = self.found[each.pair]
            found.log_probs.append(log_prob)
            found.greedy &= is_best
            found.greedy_allowed &= is_allowed if each.first else is_best


def _renumber(nodes: Sequence[Node], numbers: Sequence[int]) -> None:
    for node in nodes:
        node.sequences = [numbers[place] for place in node.sequences]
        _renumber(node.children, numbers)


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
