"""GLUE's measures against scikit-learn's and scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from lmsmith.statistics.classification import (
    accuracy,
    confusion,
    f1,
    matthews,
    mean_ranks,
    measure_labels,
    measure_scores,
    pearson,
    spearman,
)
from lmsmith.statistics.intervals import wilson_interval


@pytest.mark.parametrize("classes", [2, 4])
def test_label_measures_equal_scikit_learns(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, 60)
    predicted = np.where(random.random(60) < 0.5, truth, random.integers(0, classes, 60))
    table = confusion(truth, predicted, classes)
    assert (table == metrics.confusion_matrix(truth, predicted)).all()
    assert accuracy(table) == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert matthews(table) == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
    assert f1(table) == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    for label in range(classes):
        expected = metrics.f1_score(truth == label, predicted == label)
        assert f1(table, label) == pytest.approx(expected)


def test_correlations_equal_scipys_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 6, 50).astype(float)
    y = x + random.normal(0, 2, 50).round()
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert mean_ranks(x, np.ones(50)) == pytest.approx(stats.rankdata(x))


def test_weights_are_repetitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(size=20), random.normal(size=20)
    times = random.integers(0, 3, 20)
    for measure in (pearson, spearman):
        repeated = measure(np.repeat(x, times), np.repeat(y, times))
        assert measure(x, y, times.astype(float)) == pytest.approx(repeated)


def test_a_constant_has_no_correlation_and_no_nan() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    constant = np.full(4, 0.1)
    assert pearson(truth, constant) == spearman(constant, truth) == 0.0
    assert matthews(confusion(np.array([0, 1, 1]), np.array([1, 1, 1]), 2)) == 0.0
    assert f1(confusion(np.array([0, 0]), np.array([0, 0]), 2), 1) == 0.0
    found = measure_scores("pearson", truth, constant)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_intervals_hold_the_value_and_narrow_with_items(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = []
    for items in (50, 800):
        truth = random.integers(0, 2, items)
        predicted = np.where(random.random(items) < 0.8, truth, 1 - truth)
        found = measure_labels("matthews", truth, predicted, 2)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
    assert math.isnan(measure_labels("f1", [0, 1], [0, 1], 2, 1, intervals=False).low)


def test_all_right_is_not_certain() -> None:
    assert measure_labels("accuracy", [0, 1, 1], [0, 1, 1], 2) == wilson_interval(3, 3)
    assert measure_labels("accuracy", [0, 1], [1, 0], 2) == wilson_interval(0, 2)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="one number an item"):
        pearson(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="one label an item"):
        confusion(np.zeros(4, int), np.zeros((4, 1), int), 2)
    with pytest.raises(ValueError, match="no items"):
        measure_scores("pearson", [], [])
