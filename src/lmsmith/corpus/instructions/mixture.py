"""How much of each task is learnt, and what must not be: FLAN's mixture and its held-out clusters.

Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners", sections 2.1, 2.2 and 2.4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

RELATED: tuple[frozenset[str], ...] = (
    frozenset({"nli", "paraphrase"}),
    frozenset({"reading", "reading_commonsense"}),
    frozenset({"commonsense", "reading_commonsense"}),
)
"""Clusters that tell much of each other: where one is measured, the other is not learnt (section
2.2)."""


def left_out_clusters(held_out: Collection[str], *, related: bool = True) -> set[str]:
    """The clusters that are not learnt where some are measured."""
    if not related:
        return set(held_out)
    return set(held_out).union(*(pair for pair in RELATED if pair & set(held_out)))


def mixing_counts(sizes: Mapping[str, int], limit: int, total: int = 0) -> dict[str, int]:
    """Examples of each task by examples-proportional mixing (Raffel et al. 2020, section 3.5.2).

    A task of e examples has the share min(e, K) / Σ min(e, K).

    Args:
        sizes: examples that each task has.
        limit: K, the mixing rate's maximum; 3,000 in the paper.
        total: examples in all; Σ min(e, K) if 0. Where it is more, a task has more than e.

    Returns:
        Whole numbers that add up to ``total`` exactly (largest remainders).
    """
    rates = {name: min(size, limit) for name, size in sizes.items() if size}
    whole = sum(rates.values())
    if not total or not whole:
        return rates
    exact = {name: total * rate / whole for name, rate in rates.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def word_runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    """Every run of so many words; of a shorter text the whole of it."""
    if not words:
        return ()
    length = min(length, len(words))
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
