"""Whether σ(r_a − r_b) is the chance that a is preferred: reliability bins and their error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bin = dict[str, float]


def preference_probabilities(differences: ArrayLike) -> NDArray[np.float64]:
    """σ(r_w − r_l), without overflow."""
    x = np.asarray(differences, dtype=np.float64)
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, half) / (1.0 + half)


def reliability_bins(differences: ArrayLike, bins: int = 10) -> list[Bin]:
    """Reliability diagram (Murphy & Winkler 1977) of a reward model over labelled pairs.

    Each pair is counted in both orientations, as (w, l) that was preferred and as (l, w) that
    was not; so the diagram is symmetric about ½ and no coin decides which response comes first.

    Args:
        differences: r_w − r_l of each pair.
        bins: number of bins of equal width between 0 and 1.

    Returns:
        ``{"low", "high", "predicted", "observed", "count"}`` of the bins that are not empty:
        mean predicted probability, share preferred, and orientations counted.
    """
    right = preference_probabilities(differences)
    predicted = np.concatenate([right, 1.0 - right])
    observed = np.concatenate([np.ones_like(right), np.zeros_like(right)])
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    found: list[Bin] = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            found.append(
                {
                    "low": number / bins,
                    "high": (number + 1) / bins,
                    "predicted": float(predicted[inside].mean()),
                    "observed": float(observed[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ count/total · |observed − predicted| (Naeini et al. 2015); 0 is perfectly calibrated."""
    total = sum(each["count"] for each in bins)
    return sum(each["count"] * abs(each["observed"] - each["predicted"]) for each in bins) / total
