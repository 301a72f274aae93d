"""Wilson's interval against its defining equation."""

from __future__ import annotations

import pytest

from lmsmith.statistics.intervals import wilson_interval


@pytest.mark.parametrize(("right", "items"), [(1, 10), (5, 10), (97, 100), (3, 400)])
def test_the_ends_are_where_the_score_test_just_rejects(right: int, items: int) -> None:
    found = wilson_interval(right, items)
    for end in (found.low, found.high):
        score = abs(right / items - end) / (end * (1 - end) / items) ** 0.5
        assert score == pytest.approx(1.959964, rel=1e-5)


def test_none_and_all_keep_a_width() -> None:
    assert wilson_interval(0, 100).low == 0.0
    assert wilson_interval(0, 100).high == pytest.approx(0.03699, abs=1e-4)
    assert wilson_interval(100, 100).high == 1.0
    assert wilson_interval(100, 100).low == pytest.approx(1 - 0.03699, abs=1e-4)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
