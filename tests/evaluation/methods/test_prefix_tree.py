"""The tree holds every sequence once, and shares what is long enough."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.methods.prefix_tree import Node, build_tree
from lmsmith.generation.prefix_cache import common_length

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def spelled(nodes: Sequence[Node], before: tuple[int, ...] = ()) -> dict[int, list[int]]:
    """Each sequence as the nodes on its way spell it."""
    found: dict[int, list[int]] = {}
    for node in nodes:
        here = (*before, *node.tokens)
        assert node.start == len(before)
        below = spelled(node.children, here)
        for number in node.sequences:
            found[number] = below.get(number, list(here))
    return found


def nodes_of(nodes: Sequence[Node]) -> list[Node]:
    return [each for node in nodes for each in (node, *nodes_of(node.children))]


@given(st.lists(TOKENS, min_size=1, max_size=12), st.integers(1, 4))
def test_every_sequence_is_spelled_by_one_way_down(
    sequences: list[tuple[int, ...]], least: int
) -> None:
    roots = build_tree(sequences, least=least)
    assert spelled(roots) == {n: list(sequence) for n, sequence in enumerate(sequences)}
    for node in nodes_of(roots):
        if node.children:
            assert len(node.tokens) >= least


def test_what_is_shared_is_read_once_and_what_is_short_is_not_parted() -> None:
    shots = tuple(range(20))
    sequences = [(*shots, 30, *range(40, 50), n) for n in range(4)]
    sequences += [(*shots, 31, 50 + n) for n in range(3)]
    roots = build_tree(sequences)
    assert [len(root.tokens) for root in roots] == [20]
    assert sorted(len(child.tokens) for child in roots[0].children) == [2, 2, 2, 11]
    assert sum(len(node.tokens) for node in nodes_of(roots)) == 20 + 11 + 4 + 3 * 2


@given(TOKENS, TOKENS)
def test_common_length_is_the_longest_shared_beginning(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length == min(len(one), len(other))
