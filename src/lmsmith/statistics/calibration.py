"""Calibration: reliability bins of predicted probabilities, and their error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lmsmith.statistics.fits import sigmoid

Bin = dict[str, float]

BINS = 10


def reliability_bins(differences: ArrayLike, bins: int = BINS) -> list[Bin]:
    """Reliability diagram (Murphy & Winkler 1977) of a reward model over labelled pairs.

    Each pair is counted in both orientations, as (w, l) that was preferred and as (l, w) that
    was not; so the diagram is symmetric about ½ and no coin decides which response comes first.

    Args:
        differences: r_w − r_l of each pair.
    """
    right = sigmoid(differences)
    predicted = np.concatenate([right, 1.0 - right])
    observed = np.concatenate([np.ones_like(right), np.zeros_like(right)])
    return confidence_bins(predicted, observed, bins)


def confidence_bins(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = BINS,
    equal: Literal["width", "mass"] = "width",
) -> list[Bin]:
    """The reliability diagram (Guo et al. 2017, section 2).

    Args:
        confidence: of each item, between 0 and 1.
        correct: 1 where it was right, else 0.
        equal: bins of equal width between 0 and 1 (Naeini et al. 2015), or with equally many items
            (Nguyen & O'Connor 2015).

    Returns:
        ``{"low", "high", "predicted", "observed", "count"}`` of the bins that are not empty: mean
        confidence, share of right ones, and number of items.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if equal == "width":
        place = np.minimum((sure * bins).astype(int), bins - 1)
    else:
        rank = np.empty(sure.size, dtype=int)
        rank[np.argsort(sure, kind="stable")] = np.arange(sure.size)
        place = rank * bins // max(1, sure.size)
    found: list[Bin] = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            low, high = number / bins, (number + 1) / bins
            if equal == "mass":
                low, high = float(sure[inside].min()), float(sure[inside].max())
            predicted, observed = float(sure[inside].mean()), float(right[inside].mean())
            sides = {"low": low, "high": high, "predicted": predicted, "observed": observed}
            found.append({**sides, "count": int(inside.sum())})
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ count/total · |observed − predicted| (Naeini et al. 2015); 0 is perfectly calibrated."""
    total = sum(each["count"] for each in bins)
    return sum(each["count"] * abs(each["observed"] - each["predicted"]) for each in bins) / total
