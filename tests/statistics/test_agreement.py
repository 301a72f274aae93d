"""Agreement against scipy, Krippendorff's own examples, and definitions written out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lmsmith.statistics import agreement
from lmsmith.statistics.agreement import Metric, krippendorff_alpha

_rankings = st.integers(2, 9).flatmap(
    lambda k: st.tuples(*[st.lists(st.integers(1, k), min_size=k, max_size=k)] * 2)
)


@given(_rankings)
@settings(deadline=None)
def test_tau_b_is_scipys(pair: tuple[list[int], list[int]]) -> None:
    one, other = pair
    ours, theirs = agreement.kendall_tau_b(one, other), kendalltau(one, other).statistic
    assert math.isnan(ours) == math.isnan(theirs)
    if not math.isnan(ours):
        assert ours == pytest.approx(theirs, abs=1e-12)


_OBSERVERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def _units(table: str) -> list[list[float]]:
    columns = zip(*(line.split() for line in table.strip().splitlines()), strict=True)
    return [[float(value) for value in column if value != "."] for column in columns]


@pytest.mark.parametrize(
    ("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_krippendorffs_example(metric: Metric, alpha: float) -> None:
    """Krippendorff 2011, section C: twelve units, four observers, values missing."""
    assert _alpha(_units(_OBSERVERS), metric) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_observers_and_two_values() -> None:
    """Krippendorff 2011, section A."""
    units = _units("0 1 0 0 0 0 0 0 1 0\n1 1 1 0 0 1 0 0 0 0")
    assert _alpha(units, "nominal") == pytest.approx(0.095, abs=5e-4)


def _alpha(units: list[list[float]], metric: Metric) -> float:
    found = krippendorff_alpha([[unit] for unit in units], metric, resamples=1)
    return math.nan if found is None else found.value


def _alpha_by_pairs(units: list[list[float]], metric: Metric) -> float:
    """1 − D_o / D_e, over all pairs of values, one by one."""
    units = [unit for unit in units if len(unit) >= 2]
    everything = [value for unit in units for value in unit]

    def distance(a: float, b: float) -> float:
        if metric == "nominal":
            return float(a != b)
        if metric == "interval":
            return (a - b) ** 2
        low, high = sorted((a, b))
        between = sum(low <= value <= high for value in everything)
        ends = sum(value == low for value in everything) + sum(v == high for v in everything)
        return 0.0 if a == b else (between - ends / 2) ** 2

    n = len(everything)
    observed = sum(
        distance(a, b) / (len(unit) - 1)
        for unit in units
        for a, b in itertools.permutations(unit, 2)
    )
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (n - 1)
    return 1 - observed / expected


@given(
    st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=6),
    st.sampled_from(["nominal", "ordinal", "interval"]),
)
@settings(deadline=None)
def test_alpha_is_its_definition(units: list[list[int]], metric: Metric) -> None:
    found = [[float(value) for value in unit] for unit in units]
    values = {value for unit in found if len(unit) >= 2 for value in unit}
    alpha = _alpha(found, metric)
    if len(values) < 2:
        assert math.isnan(alpha)
    else:
        assert alpha == pytest.approx(_alpha_by_pairs(found, metric), abs=1e-9)


def test_alphas_interval_holds_it_and_narrows_with_more_units() -> None:
    source = np.random.default_rng(5)

    def units(count: int) -> list[list[list[float]]]:
        truth = source.integers(1, 8, count)
        noise = source.integers(-1, 2, (count, 3))
        return [
            [np.clip(t + row, 1, 7).astype(float).tolist()]
            for t, row in zip(truth, noise, strict=True)
        ]

    few, many = (krippendorff_alpha(units(n), "interval") for n in (20, 400))
    assert few is not None
    assert many is not None
    for each in (few, many):
        assert each.low < each.value < each.high
    assert many.high - many.low < (few.high - few.low) / 2
    whole = units(30)
    found = krippendorff_alpha(whole, "interval")
    assert found is not None
    assert found.value == pytest.approx(_alpha_by_pairs([each[0] for each in whole], "interval"))
    assert krippendorff_alpha([[[1.0]]], "interval") is None


def test_pairs_agree_by_half_where_one_sees_a_tie() -> None:
    assert agreement.pairs_of([2, 1, 2]).tolist() == [-1, 0, 1]
    one, tied, reverse = [1, 2, 3, 4], [1, 2, 2, 4], [4, 3, 2, 1]

    def share(*rankings: list[int]) -> float:
        found = agreement.pairwise_agreement([rankings])
        assert found is not None
        return found.value

    assert share(one, one) == 1
    assert share(one, tied) == pytest.approx(5.5 / 6)
    assert share(one, reverse) == 0
    assert share(tied, tied) == 1
    assert share(one, one, reverse) == pytest.approx(1 / 3)
    assert agreement.pairwise_agreement([[one]]) is None


def test_an_all_tied_ranking_has_no_tau() -> None:
    found = agreement.mean_tau_b([[[1, 1, 1, 1], [1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 3, 4]]])
    assert found is not None
    assert found.value == 1
    assert agreement.mean_tau_b([[[1, 1], [1, 2]]]) is None
