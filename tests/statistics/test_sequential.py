"""The test of votes against exact sums, its betting form, and its guarantee under simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmsmith.statistics.sequential import (
    SequentialTest,
    anytime_interval,
    decide,
    log_e_value,
)


def test_the_e_value_is_the_product_of_its_bets(seed: int) -> None:
    """Each vote multiplies it by twice the chance that the mixture gave to what came."""
    wins, log_e = 0, 0.0
    for votes, outcome in enumerate(np.random.default_rng(seed).random(300) < 0.6):
        chance = (5 + wins) / (10 + votes)
        log_e += math.log(2 * (chance if outcome else 1 - chance))
        wins += int(outcome)
        assert float(log_e_value(wins, votes + 1)) == pytest.approx(log_e, abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.9])
def test_the_mean_is_one_where_the_share_is_true(share: float) -> None:
    wins = np.arange(41)
    chances = [math.comb(40, w) * share**w * (1 - share) ** (40 - w) for w in wins]
    assert float(np.exp(log_e_value(wins, 40, share)) @ chances) == pytest.approx(1.0)


def test_half_votes_keep_the_mean_at_most_one(seed: int) -> None:
    outcomes = np.random.default_rng(seed).choice(
        [0.0, 0.5, 1.0], p=[0.3, 0.4, 0.3], size=(4000, 60)
    )
    assert float(np.exp(log_e_value(outcomes.sum(1), 60)).mean()) < 1.0


def test_the_interval_ends_where_the_e_value_reaches_its_limit() -> None:
    found = anytime_interval(60, 100)
    for end in (found.low, found.high):
        assert float(log_e_value(60, 100, end)) == pytest.approx(math.log(20), abs=1e-6)
    assert found.low < 0.6 < found.high
    assert (anytime_interval(0, 30).low, anytime_interval(30, 30).high) == (0.0, 1.0)
    assert anytime_interval(0, 0) == anytime_interval(0.0, 0)


def test_votes_after_a_decision_do_not_change_it() -> None:
    test = SequentialTest()
    first = decide([1.0] * 40, test)
    assert first.outcome == "better"
    assert decide([1.0] * first.votes + [0.0] * 500, test) == first
    assert decide([1.0] * (first.votes - 1), test).outcome == "undecided"
    assert decide([0.0] * 40, SequentialTest(worth=0.0)).outcome == "worse"
    assert decide([0.0] * 40, test).outcome == "futile"


def test_a_test_without_a_decision_ends_as_futile() -> None:
    assert decide([], SequentialTest()).outcome == "undecided"
    equal = decide([1.0, 0.0] * 1000, SequentialTest(max_votes=100, worth=0.0))
    assert (equal.outcome, equal.votes) == ("futile", 100)
    early = decide([1.0, 0.0] * 1000, SequentialTest(worth=0.6))
    assert early.outcome == "futile"
    assert early.votes < 400
    assert early.share.high < 0.6


def test_ties_are_split_as_declared() -> None:
    votes = [1.0] * 30 + [0.5] * 30
    assert decide([0.5] * 50, SequentialTest(ties="drop")).votes == 0
    assert decide([0.5] * 50, SequentialTest(ties="half")).share.value == 0.5
    dropped = decide([0.5] * 30 + votes, SequentialTest(ties="drop"))
    assert dropped == decide([1.0] * 30, SequentialTest(ties="drop"))


def test_false_decisions_stay_below_alpha(seed: int) -> None:
    """10,000 tests would be benchmarks/promotion.py; 600 show a mistake in the formula."""
    votes = (np.random.default_rng(seed).random((600, 1000)) < 0.5).astype(float)
    decided = [
        decide(row, SequentialTest(worth=0.0)).outcome in ("better", "worse") for row in votes
    ]
    assert np.mean(decided) < 0.06


def test_a_share_that_is_not_worth_it_is_refused() -> None:
    (problem,) = SequentialTest(worth=0.5).check()
    assert (problem.key, SequentialTest(worth=0.0).check()) == ("worth", [])
