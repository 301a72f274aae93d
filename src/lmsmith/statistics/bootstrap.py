"""How sure a measured number is: percentile bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A number and the interval around it that holds the given share of its resamples."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """``{name, name_low, name_high}``, as metrics are."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def resample_counts(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn in each resample, a few resamples at a time.

    Each row is one draw of ``clusters`` clusters with replacement: a multinomial.

    Yields:
        (some resamples, clusters), ``resamples`` rows in all.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(clusters, 1.0 / clusters)
    at_once = max(1, COUNTS_AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        yield generator.multinomial(clusters, chances, size=rows).astype(np.float64)


def percentile_interval(value: float, resampled: Floats, level: float = 0.95) -> Interval:
    """The middle ``level`` of the resampled values (Efron 1979), NaNs left out."""
    known = resampled[~np.isnan(resampled)]
    if known.size == 0:
        return Interval(value, float("nan"), float("nan"))
    tail = (1.0 - level) / 2
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def bootstrap_ratio(
    numerators: ArrayLike | Sequence[float],
    denominators: ArrayLike | Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Σ numerators / Σ denominators with its percentile interval, clusters resampled whole.

    A cluster is a prompt: what is measured on one prompt (its pairs, its tokens) is drawn
    together, since it is not independent. Without denominators it is the mean.

    Args:
        numerators: a sum for each cluster, e.g. its pairs ordered rightly.
        denominators: a count for each cluster, e.g. its pairs; 1 if None.
        seed: the same seed gives the same interval.
        resamples: how many.
        level: share of the resamples within the interval.

    Raises:
        ValueError: there are no clusters, or the denominators add up to nothing.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape:
        raise ValueError(f"one number a cluster expected, got {top.shape} and {bottom.shape}")
    if top.size == 0 or bottom.sum() == 0:
        raise ValueError("nothing to measure: no clusters, or all of them are empty")
    parts = []
    for counts in resample_counts(top.size, resamples, seed):
        below = counts @ bottom
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(np.where(below > 0, (counts @ top) / below, np.nan))
    return percentile_interval(float(top.sum() / bottom.sum()), np.concatenate(parts), level)
