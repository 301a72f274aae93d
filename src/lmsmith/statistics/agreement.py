"""How far labelers agree: pair by pair, by Kendall's τ-b, and by Krippendorff's α.

All of it is made of numpy arrays; nothing here knows the database.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmsmith.statistics.bootstrap import (
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
)

Floats = NDArray[np.float64]
Metric = Literal["nominal", "ordinal", "interval"]

RESAMPLES = 1_000


def pairs_of(ranks: Sequence[int]) -> NDArray[np.int64]:
    """For each two responses i < j: 1 if i is better, −1 if j is, 0 for a tie. (K(K−1)/2,)"""
    each = np.asarray(ranks, np.int64)
    first, second = np.triu_indices(each.size, k=1)
    return np.asarray(np.sign(each[second] - each[first]))


def pairwise_agreement(tasks: Sequence[Sequence[Sequence[int]]], seed: int = 0) -> Interval | None:
    """Share of pairs of responses on which two labelers agree, with its bootstrap 95 % interval.

    Two who prefer the same, or who both see a tie, agree (1); a tie against a preference counts ½;
    opposite preferences 0. Tasks are resampled whole.

    Args:
        tasks: rankings of one task's responses by two or more labelers, a list a task.

    Returns:
        None if no task has two rankings.
    """
    agreed, counted = [], []
    for rankings in tasks:
        signs = [pairs_of(ranks) for ranks in rankings]
        scores = [1 - np.abs(a - b) / 2 for a, b in itertools.combinations(signs, 2)]
        if scores:
            agreed.append(float(np.sum(scores)))
            counted.append(float(np.size(scores)))
    return bootstrap_ratio(agreed, counted, seed=seed, resamples=RESAMPLES) if agreed else None


def kendall_tau_b(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's rank correlation with ties (Kendall 1945).

    τ_b = (C − D) / √((n₀ − n₁)(n₀ − n₂)): concordant less discordant pairs over the geometric mean
    of the numbers of pairs that are no tie in either ranking; NaN if all of one is a tie.
    """
    a, b = pairs_of(one), pairs_of(other)
    scale = float(np.sqrt(np.count_nonzero(a) * np.count_nonzero(b)))
    return float((a * b).sum() / scale) if scale else float("nan")


def mean_tau_b(tasks: Sequence[Sequence[Sequence[int]]], seed: int = 0) -> Interval | None:
    """The mean τ-b of all two labelers of a task, tasks resampled whole.

    Where one of the two sees nothing but ties there is no τ-b, and the two are left out.
    """
    sums, counts = [], []
    for rankings in tasks:
        found = [kendall_tau_b(a, b) for a, b in itertools.combinations(rankings, 2)]
        known = [tau for tau in found if not np.isnan(tau)]
        if known:
            sums.append(float(np.sum(known)))
            counts.append(float(len(known)))
    return bootstrap_ratio(sums, counts, seed=seed, resamples=RESAMPLES) if sums else None


def krippendorff_alpha(
    clusters: Iterable[Sequence[Sequence[float]]],
    metric: Metric,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Krippendorff's α = 1 − D_o / D_e with its bootstrap 95 % interval (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability").

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
    parts = _coincidences(clusters)
    if parts is None:
        return None
    values, by_cluster_cvv = parts
    flat_cx = by_cluster_cvv.reshape(len(by_cluster_cvv), -1)
    found = [
        _alpha(values, drawn.reshape(values.size, values.size), metric)
        for counts in resample_counts(len(flat_cx), resamples, seed)
        for drawn in counts @ flat_cx
    ]
    value = _alpha(values, by_cluster_cvv.sum(axis=0), metric)
    return percentile_interval(value, np.asarray(found))


def _coincidences(clusters: Iterable[Sequence[Sequence[float]]]) -> tuple[Floats, Floats] | None:
    """The values there are, and each cluster's coincidences of them: pairs over (m − 1)."""
    pairable = [[u for u in units if len(u) >= 2] for units in clusters]
    pairable = [units for units in pairable if units]
    if not pairable:
        return None
    values = np.unique(np.concatenate([np.asarray(u, float) for us in pairable for u in us]))
    found = np.zeros((len(pairable), values.size, values.size))
    for number, units in enumerate(pairable):
        for unit in units:
            each = np.asarray(unit, np.float64)
            counts = (each[:, None] == values).sum(axis=0).astype(np.float64)
            found[number] += (np.outer(counts, counts) - np.diag(counts)) / (each.size - 1)
    return values, found


def _alpha(values: Floats, coincidences_vv: Floats, metric: Metric) -> float:
    totals = coincidences_vv.sum(axis=1)
    n = float(totals.sum())
    distance_vv = _DISTANCES[metric](values, totals)
    observed = float((coincidences_vv * distance_vv).sum())
    expected = float((np.outer(totals, totals) * distance_vv).sum()) / (n - 1)
    return 1 - observed / expected if expected else float("nan")


def _nominal(values: Floats, _: Floats) -> Floats:
    return 1.0 - np.eye(values.size)


def _ordinal(_: Floats, totals: Floats) -> Floats:
    """(values from c to k, those at the ends by half)²."""
    middle = np.cumsum(totals) - totals / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


def _interval(values: Floats, _: Floats) -> Floats:
    return np.asarray((values[:, None] - values[None, :]) ** 2)


_DISTANCES: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def preferences(rankings: Sequence[Sequence[int]]) -> list[list[float]]:
    """Every two responses of a task as a unit: what each labeler prefers, −1, 0 or 1."""
    said = np.stack([pairs_of(ranks) for ranks in rankings])
    units: list[list[float]] = said.T.astype(np.float64).tolist()
    return units
