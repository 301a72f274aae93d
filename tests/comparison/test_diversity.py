"""Distinct n-grams by hand."""

from __future__ import annotations

import pytest

from lmsmith.comparison.replies import distinct, most_repeated_share


def test_distinct_by_hand() -> None:
    replies = [[1, 2, 3], [1, 2], [4]]
    assert distinct(replies, 1) == pytest.approx(4 / 6)
    assert distinct(replies, 2) == pytest.approx(2 / 3)
    assert distinct(replies, 4) == 0.0
    assert distinct([], 1) == 0.0


def test_a_reply_said_again_and_again() -> None:
    assert most_repeated_share(["Yes  sir", "yes sir", "no", "maybe"]) == pytest.approx(0.5)
    assert most_repeated_share([]) == 0.0
