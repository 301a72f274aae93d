"""How far labelers agree: pair by pair, by Kendall's τ-b, and by Krippendorff's α."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmsmith.statistics.intervals import (
    Floats,
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
)

Ranks = Sequence[int]
Metric = Literal["nominal", "ordinal", "interval"]

RESAMPLES = 1_000


def pairs_of(ranks: Ranks) -> NDArray[np.int64]:
    """For each two responses i < j: 1 if i is better, −1 if j is, 0 for a tie. (K(K−1)/2,)"""
    each = np.asarray(ranks, np.int64)
    first, second = np.triu_indices(each.size, k=1)
    return np.asarray(np.sign(each[second] - each[first]))


def pairwise_agreement(tasks: Sequence[Sequence[Ranks]], seed: int = 0) -> Interval | None:
    """Share of pairs of responses on which two labelers agree, with its bootstrap 95 % interval.

    Two who prefer the same, or who both see a tie, agree (1); a tie against a preference counts ½;
    opposite preferences 0. Tasks are resampled whole.

    Args:
        tasks: rankings of one task's responses by its labelers, a list a task.

    Returns:
        None if no task has two rankings.
    """

    def agreed(one: Ranks, other: Ranks) -> Floats:
        return np.asarray(1 - np.abs(pairs_of(one) - pairs_of(other)) / 2)

    return _mean_over_two(agreed, tasks, seed)


def _mean_over_two(
    score: Callable[[Ranks, Ranks], Floats], tasks: Sequence[Sequence[Ranks]], seed: int
) -> Interval | None:
    """The mean score of every two rankings of a task; None if there is none."""
    sums, counts = [], []
    for rankings in tasks:
        scores = [score(a, b) for a, b in itertools.combinations(rankings, 2)]
        if count := sum(each.size for each in scores):
            sums.append(float(sum(each.sum() for each in scores)))
            counts.append(float(count))
    return bootstrap_ratio(sums, counts, seed=seed, resamples=RESAMPLES) if sums else None


def kendall_tau_b(one: Ranks, other: Ranks) -> float:
    """Kendall's rank correlation with ties (Kendall 1945).

    τ_b = (C − D) / √((n₀ − n₁)(n₀ − n₂)): concordant less discordant pairs over the geometric mean
    of the numbers of pairs that are no tie in either ranking; NaN if all of one is a tie.
    """
    a, b = pairs_of(one), pairs_of(other)
    scale = float(np.sqrt(np.count_nonzero(a) * np.count_nonzero(b)))
    return float((a * b).sum() / scale) if scale else math.nan


def mean_tau_b(tasks: Sequence[Sequence[Ranks]], seed: int = 0) -> Interval | None:
    """The mean τ-b of every two labelers of a task, tasks resampled whole.

    Two are left out where one sees nothing but ties, so that there is no τ-b.
    """

    def known(one: Ranks, other: Ranks) -> Floats:
        tau = np.array([kendall_tau_b(one, other)])
        return np.asarray(tau[~np.isnan(tau)])

    return _mean_over_two(known, tasks, seed)


def krippendorff_alpha(
    clusters: Iterable[Sequence[Sequence[float]]],
    metric: Metric,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Krippendorff's α = 1 − D_o / D_e with its bootstrap 95 % interval (Krippendorff 2011).

    D_o is the mean squared difference of values within a unit, D_e that of all values, whatever
    their unit; 1 is agreement, 0 what chance gives.

    Args:
        clusters: units, what all labelers said of one; the units of a task are one cluster and
            are resampled together. Units with fewer than two values say nothing.
        metric: nominal: values are equal or not. ordinal: they differ by how many values lie
            between. interval: they differ by their difference.

    Returns:
        None if there is nothing to compare; NaN if all values are the same.
    """
    pairable = ([u for u in units if len(u) >= 2] for units in clusters)
    kept = [units for units in pairable if units]
    if not kept:
        return None
    values = np.unique(np.concatenate([np.asarray(u, float) for units in kept for u in units]))
    by_cluster_cvv = np.stack([_coincidences(units, values) for units in kept])
    flat_cx = by_cluster_cvv.reshape(len(by_cluster_cvv), -1)
    found = [
        _alpha(values, drawn.reshape(values.size, values.size), metric)
        for counts in resample_counts(len(flat_cx), resamples, seed)
        for drawn in counts @ flat_cx
    ]
    value = _alpha(values, by_cluster_cvv.sum(axis=0), metric)
    return percentile_interval(value, np.asarray(found))


def _coincidences(units: Sequence[Sequence[float]], values: Floats) -> Floats:
    """How often two values are in one unit: pairs over (m − 1)."""
    found = np.zeros((values.size, values.size))
    for unit in units:
        counts = (np.asarray(unit, np.float64)[:, None] == values).sum(axis=0).astype(np.float64)
        found += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return found


def _alpha(values: Floats, coincidences_vv: Floats, metric: Metric) -> float:
    totals = coincidences_vv.sum(axis=1)
    n = float(totals.sum())
    distance_vv = _DISTANCES[metric](values, totals)
    observed = float((coincidences_vv * distance_vv).sum())
    expected = float((np.outer(totals, totals) * distance_vv).sum()) / (n - 1)
    return 1 - observed / expected if expected else math.nan


def _ordinal(_: Floats, totals: Floats) -> Floats:
    """(values from c to k, those at the ends by half)²."""
    middle = np.cumsum(totals) - totals / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


_DISTANCES: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    "nominal": lambda values, _: 1.0 - np.eye(values.size),
    "ordinal": _ordinal,
    "interval": lambda values, _: (values[:, None] - values[None, :]) ** 2,
}


def preferences(rankings: Sequence[Ranks]) -> list[list[float]]:
    """Each two responses of a task as a unit: what each labeler prefers, −1, 0 or 1."""
    preferred = np.stack([pairs_of(ranks) for ranks in rankings])
    units: list[list[float]] = preferred.T.astype(np.float64).tolist()
    return units
