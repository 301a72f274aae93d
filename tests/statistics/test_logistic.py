"""Logistic regression against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from lmsmith.statistics.fits import fit_logistic


def with_ones(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(x), x], axis=1)


def test_regression_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ridge = 0.5
    x = generator.normal(size=300)
    y = (generator.random(300) < 1 / (1 + np.exp(-(0.4 + 1.3 * x)))).astype(float)
    weights = generator.integers(0, 4, size=(5, 300)).astype(float)
    ours = fit_logistic(with_ones(x), y, weights, ridge=ridge)
    for row, weight in zip(ours, weights, strict=True):
        oracle = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1_000)
        oracle.fit(np.stack([np.ones_like(x), x], axis=1), y, sample_weight=weight)
        assert row.tolist() == pytest.approx(oracle.coef_[0].tolist(), abs=1e-5)


def test_a_tie_is_half_a_win_and_half_a_loss(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=40), generator.choice([0.0, 0.5, 1.0], size=40)
    doubled_x = np.repeat(x, 2)
    doubled_y = np.stack([np.ceil(y), np.floor(y)], axis=1).ravel()
    halves = np.full((1, 80), 0.5)
    assert fit_logistic(with_ones(x), y, ridge=1e-3)[0].tolist() == pytest.approx(
        fit_logistic(with_ones(doubled_x), doubled_y, halves, ridge=1e-3)[0].tolist(), abs=1e-8
    )
