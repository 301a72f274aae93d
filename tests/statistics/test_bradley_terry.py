"""The Bradley–Terry model against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lmsmith.statistics.bradley_terry import RIDGE, Outcome, bradley_terry, leaderboard


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_those_of_a_logistic_regression(seed: int) -> None:
    source = np.random.default_rng(seed)
    models = int(source.integers(2, 7))
    wins = source.integers(0, 30, (models, models)) / 2.0
    np.fill_diagonal(wins, 0)
    rows, won, weight = [], [], []
    for i in range(models):
        for j in range(models):
            if i != j:
                row = np.zeros(models)
                row[i], row[j] = 1, -1
                rows += [row, -row]
                won += [1, 0]
                weight += [wins[i, j] / 2] * 2
    oracle = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-12, max_iter=10_000)
    oracle.fit(rows, won, sample_weight=weight)
    np.testing.assert_allclose(bradley_terry(wins), oracle.coef_[0], atol=1e-5)


def test_two_models_have_the_closed_form() -> None:
    beta = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), ridge=1e-9)
    assert beta[0] - beta[1] == pytest.approx(np.log(3), abs=1e-6)
    assert beta.sum() == pytest.approx(0, abs=1e-6)


def test_a_model_that_always_wins_has_a_finite_strength() -> None:
    tasks: list[list[Outcome]] = [[("a", "b", 1.0)]] * 50
    best, worst = leaderboard(tasks)
    assert (best.model, worst.model) == ("a", "b")
    assert 0.95 < best.rate.value < 1
    assert best.comparisons == 50


def test_intervals_hold_the_truth_and_follow_the_tasks() -> None:
    source, truth = np.random.default_rng(1), {"a": 0.8, "b": 0.0, "c": -0.8}

    def outcome(one: str, other: str) -> Outcome:
        p = 1 / (1 + np.exp(truth[other] - truth[one]))
        return one, other, float(source.random() < p)

    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    tasks = [[outcome(*pairs[n % 3])] for n in range(900)]
    found = leaderboard(tasks)
    assert [each.model for each in found] == ["a", "b", "c"]
    for each in found:
        assert each.strength.low < truth[each.model] < each.strength.high
        assert each.rate.low < each.rate.value < each.rate.high
    # The same outcomes, a hundred copies to a task, are no better known than one of each.
    few = leaderboard([[each] * 100 for (each,) in tasks[:30]])
    assert (
        few[0].strength.high - few[0].strength.low > found[0].strength.high - found[0].strength.low
    )


def test_a_model_against_itself_says_nothing() -> None:
    assert leaderboard([[("a", "a", 1.0)]]) == []
    assert leaderboard([]) == []
