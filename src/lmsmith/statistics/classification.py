"""GLUE's measures (Wang et al. 2019): accuracy, F1, Matthews, Pearson and Spearman, with intervals.

Every function takes weights, one an item, so that a resample is a vector of counts. A measure that
is not defined (a correlation with a constant, an F1 without a positive) is 0, as GLUE counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsmith.statistics.intervals import (
    Interval,
    percentile_interval,
    resample_counts,
    share_interval,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES = 2_000


def confusion(
    truth: Integers, predicted: Integers, classes: int, weights: Floats | None = None
) -> Floats:
    """How often each label (row) is predicted as each (column): (classes, classes)."""
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"one label an item expected, got {truth.shape} and {predicted.shape}")
    cells = np.bincount(truth * classes + predicted, weights, minlength=classes * classes)
    return cells.astype(np.float64).reshape(classes, classes)


def accuracy(table_kk: Floats) -> float:
    """Share of the items on the diagonal."""
    return _ratio(float(np.trace(table_kk)), float(table_kk.sum()))


def f1(table_kk: Floats, positive: int = -1) -> float:
    """2·TP / (2·TP + FP + FN) of one label; with ``positive`` −1, the mean over all labels."""
    if positive >= 0:
        right = float(table_kk[positive, positive])
        both = float(table_kk[positive].sum() + table_kk[:, positive].sum())
        return _ratio(2 * right, both)
    seen = [k for k in range(len(table_kk)) if table_kk[k].sum() + table_kk[:, k].sum() > 0]
    return _ratio(sum(f1(table_kk, k) for k in seen), len(seen))


def matthews(table_kk: Floats) -> float:
    """Matthews' correlation for any number of labels (Gorodkin 2004, R_K).

    (s·c − Σ pₖtₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²)), with s items, c right ones, tₖ of label k and pₖ
    predicted as k. 0 where all items have one label, or are predicted as one.
    """
    total, right = float(table_kk.sum()), float(np.trace(table_kk))
    true_k, predicted_k = table_kk.sum(axis=1), table_kk.sum(axis=0)
    spread = (total**2 - (predicted_k**2).sum()) * (total**2 - (true_k**2).sum())
    return _ratio(total * right - float(true_k @ predicted_k), float(np.sqrt(max(0.0, spread))))


def pearson(x: Floats, y: Floats, weights: Floats | None = None) -> float:
    """Correlation of two lists of numbers; 0 where one of them is constant."""
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"one number an item expected, got {x.shape} and {y.shape}")
    w = np.ones_like(x) if weights is None else weights
    dx, dy = x - np.average(x, weights=w), y - np.average(y, weights=w)
    spread = float((w * dx * dx).sum() * (w * dy * dy).sum())
    if is_constant(x[w > 0]) or is_constant(y[w > 0]):
        return 0.0
    return _ratio(float((w * dx * dy).sum()), float(np.sqrt(spread)))


def spearman(x: Floats, y: Floats, weights: Floats | None = None) -> float:
    """Pearson's correlation of the ranks; equal numbers share their mean rank."""
    w = np.ones_like(x) if weights is None else weights
    return pearson(mean_ranks(x, w), mean_ranks(y, w), w)


def mean_ranks(x: Floats, weights: Floats) -> Floats:
    """Rank of each number, from 1, equal ones at their mean; an item counts ``weights`` times."""
    _, places = np.unique(x, return_inverse=True)
    amounts = np.bincount(places, weights)
    ranks: Floats = (np.cumsum(amounts) - amounts / 2 + 0.5)[places]
    return ranks


def is_constant(x: Floats) -> bool:
    """Whether no two numbers differ, or there is one at most."""
    return x.size < 2 or bool((x == x[0]).all())


def measure_labels(
    measure: str,
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    positive: int = -1,
    *,
    intervals: bool = True,
) -> Interval:
    """A measure of predicted labels with its 95 % bootstrap interval over the items.

    Where all labels are right, or all wrong, accuracy has Wilson's interval.

    Args:
        measure: ``accuracy``, ``f1`` or ``matthews``.
        truth, predicted: numbers of labels, from 0.
        positive: the label whose F1 it is, if not the mean over all.
        intervals: resample the items; else the interval is NaN.
    """
    of_table: dict[str, Callable[[Floats], float]] = {
        "accuracy": accuracy,
        "f1": lambda table: f1(table, positive),
        "matthews": matthews,
    }
    t, p = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    if measure == "accuracy" and intervals and t.size and len(set(t == p)) == 1:
        return share_interval(t == p)
    return _bootstrap(
        lambda weights: of_table[measure](confusion(t, p, classes, weights)), t.size, intervals
    )


def measure_scores(
    measure: str, truth: ArrayLike, predicted: ArrayLike, *, intervals: bool = True
) -> Interval:
    """``pearson`` or ``spearman`` of predicted numbers, with its 95 % bootstrap interval."""
    t, p = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    function = {"pearson": pearson, "spearman": spearman}[measure]
    return _bootstrap(lambda weights: function(t, p, weights), t.size, intervals)


def _bootstrap(measure: Callable[[Floats], float], items: int, intervals: bool) -> Interval:
    if items == 0:
        raise ValueError("nothing to measure: no items")
    value = measure(np.ones(items))
    if not intervals:
        return Interval(value, math.nan, math.nan)
    resampled = [
        measure(weights) for block in resample_counts(items, RESAMPLES, seed=0) for weights in block
    ]
    return percentile_interval(value, np.array(resampled))


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else 0.0
