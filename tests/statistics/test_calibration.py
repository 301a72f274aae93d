"""Reliability bins against scikit-learn's, and errors by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from lmsmith.statistics.calibration import (
    expected_calibration_error,
    reliability_bins,
)
from lmsmith.statistics.fits import sigmoid


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_bins_are_those_of_scikit_learn(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.5, 2.0, size=3_000)
    right = 1 / (1 + np.exp(-differences))
    observed, predicted = calibration_curve(
        np.repeat([1, 0], 3_000), np.concatenate([right, 1 - right]), n_bins=10
    )
    bins = reliability_bins(differences)
    assert [each["observed"] for each in bins] == pytest.approx(observed.tolist())
    assert [each["predicted"] for each in bins] == pytest.approx(predicted.tolist())
    assert sum(each["count"] for each in bins) == 6_000


def test_bins_are_symmetric(seed: int) -> None:
    bins = reliability_bins(np.random.default_rng(seed).normal(size=500), bins=4)
    for one, other in zip(bins, reversed(bins), strict=True):
        assert one["predicted"] == pytest.approx(1 - other["predicted"])
        assert one["observed"] == pytest.approx(1 - other["observed"])
        assert one["count"] == other["count"]


def test_error_by_hand() -> None:
    # says 0.8 four times and is right twice: off by 0.3, from either side
    differences = [logit(0.8), logit(0.8), -logit(0.8), -logit(0.8)]
    assert expected_calibration_error(reliability_bins(differences)) == pytest.approx(0.3)


def test_a_calibrated_model_has_little_error_and_a_bold_one_much() -> None:
    generator = np.random.default_rng(5)
    margins = generator.normal(0, 1.5, size=40_000)
    labels = generator.random(40_000) < sigmoid(margins)
    oriented = np.where(labels, margins, -margins)
    assert expected_calibration_error(reliability_bins(oriented)) < 0.01
    assert expected_calibration_error(reliability_bins(4 * oriented)) > 0.1


def test_extremes_do_not_overflow() -> None:
    probabilities = sigmoid([-1e4, 0.0, 1e4])
    assert probabilities.tolist() == [0.0, 0.5, 1.0]
    bins = reliability_bins([1e4, -1e4])
    assert [each["low"] for each in bins] == [0.0, 0.9]
