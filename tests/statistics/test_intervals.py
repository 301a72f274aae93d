"""The bootstrap against the binomial's standard error, and clusters drawn whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmsmith.statistics.intervals import (
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
    share_interval,
    wilson_interval,
)


def test_interval_of_a_share_is_the_normal_one() -> None:
    share, count = 0.3, 1_000
    hits = np.arange(count) < share * count
    interval = bootstrap_ratio(hits)
    half = 1.96 * math.sqrt(share * (1 - share) / count)
    assert interval.value == pytest.approx(share)
    assert interval.low == pytest.approx(share - half, abs=0.003)
    assert interval.high == pytest.approx(share + half, abs=0.003)


def test_clusters_are_drawn_whole() -> None:
    # 100 clusters of 4 equal outcomes each know as much as 100 outcomes, not as 400.
    hits = (np.arange(100) % 2) * 4.0
    interval = bootstrap_ratio(hits, np.full(100, 4.0))
    half = 1.96 * math.sqrt(0.25 / 100)
    assert interval.value == pytest.approx(0.5)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, abs=0.01)


def test_ratio_weighs_by_the_denominator() -> None:
    interval = bootstrap_ratio([3.0, 0.0], [3.0, 1.0], resamples=2_000)
    assert interval.value == pytest.approx(0.75)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_same_seed_same_interval_and_no_other(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=50)
    assert bootstrap_ratio(values, seed=1) == bootstrap_ratio(values, seed=1)
    assert bootstrap_ratio(values, seed=1).low != bootstrap_ratio(values, seed=2).low


def test_counts_draw_as_many_as_there_are() -> None:
    counts = np.concatenate(list(resample_counts(7, 1_000, seed=3)))
    assert counts.shape == (1_000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_percentiles_leave_out_what_is_not_a_number() -> None:
    resampled = np.array([*np.linspace(0, 1, 101), np.nan])
    interval = percentile_interval(0.5, resampled, level=0.9)
    assert (interval.low, interval.high) == (pytest.approx(0.05), pytest.approx(0.95))
    assert interval.named("x") == {"x": 0.5, "x_low": interval.low, "x_high": interval.high}


@pytest.mark.parametrize(("top", "bottom"), [([], None), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_nothing_to_measure(top: list[float], bottom: list[float] | None) -> None:
    with pytest.raises(ValueError, match=r"nothing to measure|one number a cluster"):
        bootstrap_ratio(top, bottom)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_shares_that_are_all_the_same_are_not_certain(value: float) -> None:
    one, three = share_interval([value]), share_interval([value] * 3)
    assert three == wilson_interval(3 * value, 3)
    for found in (one, three):
        assert found.value == value
        assert found.high - found.low > 0.4
    assert one.high - one.low > three.high - three.low
    mixed = [0.0, 0.5, 1.0, 1.0]
    assert share_interval(mixed, seed=3) == bootstrap_ratio(mixed, seed=3)
