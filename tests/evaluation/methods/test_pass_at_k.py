"""The unbiased pass@k against its definition: the mean over all ways to pick k samples."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.methods.pass_at_k import measured_at, pass_at_k


@given(st.integers(1, 8), st.data())
def test_it_is_the_share_of_picks_that_hold_one_that_passed(
    samples: int, data: st.DataObject
) -> None:
    passed = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    outcomes = [True] * passed + [False] * (samples - passed)
    picks = list(combinations(outcomes, k))
    expected = sum(any(pick) for pick in picks) / len(picks)
    assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_it_is_the_papers_formula_for_many_samples() -> None:
    for passed in (0, 1, 13, 100, 200):
        expected = 1 - comb(200 - passed, 100) / comb(200, 100)
        assert pass_at_k(200, passed, 100) == pytest.approx(expected, abs=1e-12)


def test_impossible_counts_are_refused() -> None:
    for samples, passed, k in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(samples, passed, k)
    assert measured_at(1) == [1]
    assert measured_at(10) == [1, 10]
    assert measured_at(200) == [1, 10, 100]
