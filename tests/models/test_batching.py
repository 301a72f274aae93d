"""Groups of like length hold each sequence once."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.models.batching import length_batches


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 100))
def test_length_batches_hold_each_once_within_the_limit(lengths: list[int], tokens: int) -> None:
    groups = length_batches(lengths, tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens
    for one, other in itertools.pairwise(groups):  # no group could have been joined
        assert (len(one) + 1) * lengths[one[0]] > tokens
        assert lengths[other[0]] <= lengths[one[-1]]
