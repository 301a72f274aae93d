"""Intervals around a measured number: the bootstrap over prompts, and Wilson's of a share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A number and the interval around it that holds the given share of its resamples."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """``{name, name_low, name_high}``, as metrics are."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson_interval(right: float, items: int) -> Interval:
    """``right / items`` with Wilson's 95 % score interval (Wilson 1927), which holds at 0 and 1.

    centre = (p + z²/2n) / (1 + z²/n), half width = z √(p(1 − p)/n + z²/4n²) / (1 + z²/n).

    Raises:
        ValueError: there are no items, or more right ones than items.
    """
    if not 0 <= right <= items or items == 0:
        raise ValueError(f"{right:g} of {items}")
    z = NormalDist().inv_cdf(0.975)
    share, square = right / items, z * z / items
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / items + square / (4 * items)) ** 0.5
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == items else min(1.0, centre + half)
    return Interval(share, low, high)


def resample_counts(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn in each resample: draws with replacement, a multinomial.

    Yields:
        (some resamples, clusters), ``resamples`` rows in all.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(clusters, 1.0 / clusters)
    at_once = max(1, _COUNTS_AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        yield generator.multinomial(clusters, chances, size=rows).astype(np.float64)


def percentile_interval(value: float, resampled: Floats, level: float = 0.95) -> Interval:
    """The middle ``level`` of the resampled values (Efron 1979), NaNs left out."""
    known = resampled[~np.isnan(resampled)]
    if known.size == 0:
        return Interval(value, math.nan, math.nan)
    tail = (1.0 - level) / 2
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def bootstrap_ratio(
    numerators: ArrayLike | Sequence[float],
    denominators: ArrayLike | Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """Σ numerators / Σ denominators with its 95 % percentile interval, clusters resampled whole.

    A cluster is a prompt: what is measured on one prompt (its pairs, its tokens) is drawn
    together, since it is not independent. Without denominators it is the mean.

    Args:
        numerators: a sum for each cluster, e.g. its pairs ordered rightly.
        denominators: a count for each cluster, e.g. its pairs; 1 if None.

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
    return percentile_interval(float(top.sum() / bottom.sum()), np.concatenate(parts))


def share_interval(
    values: ArrayLike | Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """`bootstrap_ratio` of values from 0 to 1, one an item; Wilson's where all are the same.

    Resamples of what is all alike are alike too, and would say that nothing is uncertain.
    """
    shares = np.asarray(values, dtype=np.float64)
    if shares.size and (shares == shares[0]).all():
        return wilson_interval(float(shares[0]) * shares.size, shares.size)
    return bootstrap_ratio(shares, seed=seed, resamples=resamples)
