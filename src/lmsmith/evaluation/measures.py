"""What items' numbers come to: each measure with its bootstrap interval over items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsmith.evaluation.bootstrap import (
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
)

Row = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """How a measure is made of items' numbers, and read.

    Attributes:
        name: in words.
        transform: of Σ numerators / Σ denominators.
        higher_is_better: whether it is.
        is_share: whether it lies between 0 and 1, and is shown in per cent.
    """

    name: str
    transform: Callable[[float], float] = float
    higher_is_better: bool = True
    is_share: bool = True


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


MEASURES: Mapping[str, Measure] = {
    "accuracy": Measure("accuracy"),
    "accuracy_per_token": Measure("accuracy per token"),
    "accuracy_per_character": Measure("accuracy per character"),
    "accuracy_per_byte": Measure("accuracy per byte"),
    "accuracy_unconditional": Measure("accuracy unconditional"),
    "accuracy_without_stop_words": Measure("accuracy no stop words"),
    "exact_match": Measure("exact match"),
    "f1": Measure("F1 of words"),
    "perplexity": Measure("perplexity", _exp, False, False),
    "word_perplexity": Measure("perplexity a word", _exp, False, False),
    "token_perplexity": Measure("perplexity a token", _exp, False, False),
    "bits_per_byte": Measure("bits per byte", float, False, False),
    "bits_per_character": Measure("bits per character", float, False, False),
}


def measure_of(name: str) -> Measure:
    """A measure by name, ``pass_at_K`` and extra ones included."""
    if name in MEASURES:
        return MEASURES[name]
    return Measure(name.replace("_", " ").replace("pass at ", "pass@"))


def parts_of(rows: Sequence[Row], name: str) -> tuple[Floats, Floats]:
    """Numerators and denominators of a measure, one of each an item."""
    values = [row["metrics"][name] for row in rows]
    pairs = [value if isinstance(value, Sequence) else (value, 1.0) for value in values]
    return (
        np.array([pair[0] for pair in pairs], np.float64),
        np.array([pair[1] for pair in pairs], np.float64),
    )


def aggregate(
    rows: Sequence[Row], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Interval]:
    """Every measure that the items have, with its 95 % percentile interval."""
    if not rows:
        return {}
    found = {}
    for name in rows[0]["metrics"]:
        top, bottom = parts_of(rows, name)
        if not bottom.sum():
            continue
        transform = measure_of(name).transform
        ratio = bootstrap_ratio(top, bottom, seed=seed, resamples=resamples)
        found[name] = Interval(transform(ratio.value), transform(ratio.low), transform(ratio.high))
    return found


def paired_difference(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    name: str,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """A measure of b less that of a on the same items, items resampled for both together.

    Args:
        rows_a, rows_b: of the same items in the same order.
    """
    transform = np.vectorize(measure_of(name).transform, otypes=[np.float64])
    tops, bottoms = zip(parts_of(rows_a, name), parts_of(rows_b, name), strict=True)
    ratios = [top.sum() / bottom.sum() for top, bottom in zip(tops, bottoms, strict=True)]
    value = float(transform(ratios[1]) - transform(ratios[0]))
    parts = []
    for counts in resample_counts(len(rows_a), resamples, seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            each = [
                transform((counts @ top) / (counts @ bottom))
                for top, bottom in zip(tops, bottoms, strict=True)
            ]
        parts.append(each[1] - each[0])
    return percentile_interval(value, np.concatenate(parts))
