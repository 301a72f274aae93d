"""Which rows of the cache begin as a new prompt does, so that it is read from there on only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

SHORTEST = 16
"""Tokens below which reading them again is not worth the copy of a page."""

Held = tuple[int, Sequence[int]]
"""A row of the cache, and the tokens that it has read."""


class KeptRows:
    """Rows of finished replies, the least recently used one first.

    A row whose tokens another one of its salt begins with is of no use beside it, and is not kept.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[int, tuple[str, list[int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def held(self) -> list[Held]:
        return [(row, tokens) for row, (_, tokens) in self._rows.items()]

    def keep(self, row: int, tokens: list[int], salt: str = "") -> list[int]:
        """Keep a row; returns the rows that are of no use any more, which may be itself."""
        alike = [(other, before) for other, (own, before) in self._rows.items() if own == salt]
        for _, tokens_before in alike:
            if common_length(tokens_before, tokens) == len(tokens):
                return [row]
        useless = [
            other
            for other, tokens_before in alike
            if common_length(tokens_before, tokens) == len(tokens_before)
        ]
        for other in useless:
            del self._rows[other]
        self._rows[row] = salt, tokens
        return useless

    def use(self, row: int) -> None:
        """A row was begun from; one that is not kept is left alone."""
        if row in self._rows:
            self._rows.move_to_end(row)

    def forget_oldest(self, but: int | None = None) -> int | None:
        """The row used longest ago, which is kept no longer; None if there is none but ``but``."""
        row = next((row for row in self._rows if row != but), None)
        if row is not None:
            del self._rows[row]
        return row


def longest_prefix(
    rows: Iterable[Held], prompt: Sequence[int], *, whole_rows: bool
) -> tuple[int, int] | None:
    """The row that begins as ``prompt`` does for longest, and for how many tokens.

    The prompt's last token is never among them: its hidden state is needed for the next one.

    Args:
        rows: candidates.
        prompt: to be read.
        whole_rows: a row counts only if all of it begins the prompt: layers of banded attention
            have given back what an earlier end would see.
    """
    best: tuple[int, int] | None = None
    prompt = list(prompt[:-1])
    for row, tokens in rows:
        count = common_length(tokens, prompt)
        if whole_rows and count < len(tokens):
            continue
        if count >= SHORTEST and (best is None or count > best[1]):
            best = (row, count)
    return best


def common_length(left: Sequence[int], right: Sequence[int], known: int = 0) -> int:
    """How many tokens two sequences begin with in common, of which ``known`` are known."""
    low, high = known, min(len(left), len(right))
    if left[low : low + 1] != right[low : low + 1]:
        return low
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
