"""Win rates by hand; the regression against scikit-learn; control that finds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from lmsmith.comparison.win_rate import (
    length_controlled_win_rate,
    win_rate,
    wins,
)
from lmsmith.statistics.intervals import wilson_interval


def test_ties_count_half() -> None:
    assert wins([1, 2, 3], [0, 2, 4]).tolist() == [1.0, 0.5, 0.0]
    assert win_rate([1, 2, 3, 5], [0, 2, 4, 1]).value == pytest.approx(2.5 / 4)


def test_swapping_sides_mirrors_the_interval(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(0.3, 1, 200), generator.normal(size=200)
    there, back = win_rate(a, b, seed=4), win_rate(b, a, seed=4)
    assert there.low == pytest.approx(1 - back.high)
    lengths_a, lengths_b = generator.integers(1, 30, 200), generator.integers(1, 30, 200)
    one = length_controlled_win_rate(a, b, lengths_a, lengths_b)
    other = length_controlled_win_rate(b, a, lengths_b, lengths_a)
    assert one.value == pytest.approx(1 - other.value)
    assert one.low == pytest.approx(1 - other.high)


def test_control_removes_what_length_alone_won() -> None:
    generator = np.random.default_rng(11)
    count = 4_000
    lengths_a, lengths_b = generator.integers(10, 60, count), generator.integers(5, 30, count)
    ratio = np.log(lengths_a / lengths_b)
    chance = 1 / (1 + np.exp(-(0.0 + 1.5 * ratio)))  # nothing but length
    a = np.where(generator.random(count) < chance, 1.0, -1.0)
    assert win_rate(a, np.zeros(count), resamples=1).value > 0.7
    controlled = length_controlled_win_rate(a, np.zeros(count), lengths_a, lengths_b, resamples=300)
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.12


def test_equal_lengths_change_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=120), generator.normal(size=120)
    same = np.full(120, 9)
    controlled = length_controlled_win_rate(a, b, same, same)
    assert controlled.value == pytest.approx(win_rate(a, b).value, abs=1e-4)


def test_one_side_that_always_wins_stays_finite() -> None:
    lengths = np.arange(1, 51)
    controlled = length_controlled_win_rate(np.ones(50), np.zeros(50), lengths, lengths[::-1])
    assert controlled == wilson_interval(50, 50)
    assert win_rate(np.ones(50), np.zeros(50)) == controlled
