"""GPT-1's input transformations, and cutting the longer of two texts first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmsmith.prompts.transformations import Controls, transform, truncate_pair

CONTROLS = Controls.after(100)
S, D, E = 100, 101, 102


def test_the_four_forms() -> None:
    one, two = [1, 2, 3], [4, 5]
    assert transform("classification", [one], [], CONTROLS, 9) == ([[S, 1, 2, 3, E]], False)
    assert transform("entailment", [one, two], [], CONTROLS, 9) == (
        [[S, 1, 2, 3, D, 4, 5, E]],
        False,
    )
    assert transform("similarity", [one, two], [], CONTROLS, 9) == (
        [[S, 1, 2, 3, D, 4, 5, E], [S, 4, 5, D, 1, 2, 3, E]],
        False,
    )
    assert transform("multiple_choice", [one], [two, [6]], CONTROLS, 9) == (
        [[S, 1, 2, 3, D, 4, 5, E], [S, 1, 2, 3, D, 6, E]],
        False,
    )


def one_at_a_time(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    first, second = list(first), list(second)
    while len(first) + len(second) > room and (first or second):
        (first if len(first) > len(second) else second).pop()
    return first, second


lists = st.lists(st.integers(0, 99), max_size=12)


@given(lists, lists, st.integers(0, 30))
def test_pairs_lose_the_end_of_the_longer_text(
    first: list[int], second: list[int], room: int
) -> None:
    found = truncate_pair(first, second, room)
    assert tuple(map(list, found)) == one_at_a_time(first, second, room)


@given(lists, st.lists(lists, min_size=2, max_size=4), st.integers(6, 20))
def test_no_sequence_is_longer_than_allowed(
    context: list[int], answers: list[list[int]], length: int
) -> None:
    sequences, cut = transform("multiple_choice", [context], answers, CONTROLS, length)
    assert max(map(len, sequences)) <= length
    assert cut == (len(context) + max(map(len, answers)) + 3 > length)
    assert len({tuple(each[: each.index(D)]) for each in sequences}) == 1
    (sequence,), cut = transform("classification", [context], [], CONTROLS, length)
    assert (sequence[0], sequence[-1]) == (S, E)
    assert cut == (len(context) + 2 > length)
