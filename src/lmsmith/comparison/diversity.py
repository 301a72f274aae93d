"""Whether replies have collapsed: how many different words and phrases they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(replies: Sequence[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams of all replies (Li et al. 2016, section 5).

    It falls as there is more text, so compare it for the same number of replies of like length.
    0 when no reply has n tokens.
    """
    grams = [tuple(reply[i : i + n]) for reply in replies for i in range(len(reply) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def most_repeated_share(texts: Sequence[str]) -> float:
    """Share of the replies that are the most frequent one, case and white space aside."""
    counts = Counter(" ".join(text.casefold().split()) for text in texts)
    return max(counts.values(), default=0) / max(1, len(texts))
