"""Sequences that begin alike, as a tree in which what they share stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmsmith.generation.prefix_cache import common_length

LEAST_SHARED = 8
"""Tokens that sequences must share for a node of their own: a node costs what a few tokens do."""

Tokens = tuple[int, ...]


@dataclass
class Node:
    """A stretch of tokens, and the stretches that follow it.

    Attributes:
        start: position of its first token in the sequences.
        tokens: the stretch.
        sequences: the numbers of all sequences that run through it.
        children: what follows; a sequence may also end here.
    """

    start: int
    tokens: Tokens
    sequences: list[int]
    children: list[Node] = field(default_factory=list)


def build_tree(
    sequences: Sequence[Tokens], start: int = 0, least: int = LEAST_SHARED
) -> list[Node]:
    """The roots of the sequences' tree.

    Args:
        sequences: each longer than ``start``.
        start: what comes before is read already, and is the same in all of them.
        least: tokens that sequences must share for a node.
    """
    order = sorted(range(len(sequences)), key=lambda number: sequences[number])
    return _nodes(sequences, order, start, least)


def _nodes(sequences: Sequence[Tokens], order: Sequence[int], depth: int, least: int) -> list[Node]:
    """Nodes from ``depth`` on of sequences that are sorted and agree up to it."""
    nodes: list[Node] = []
    # (first, after, a position up to which all of them agree)
    groups = [(0, len(order), depth)]
    while groups:
        first, after, known = groups.pop()
        head, tail = sequences[order[first]], sequences[order[after - 1]]
        shared = common_length(head, tail, known)
        inside = list(order[first:after])
        if head == tail:  # sorted: so are all between
            if len(head) > depth:
                nodes.append(Node(depth, head[depth:], inside))
        elif shared - depth >= least:
            longer = [number for number in inside if len(sequences[number]) > shared]
            children = _nodes(sequences, longer, shared, least)
            nodes.append(Node(depth, head[depth:shared], inside, children))
        else:
            groups += reversed(_parts(sequences, order, first, after, shared))
    return nodes


def _parts(
    sequences: Sequence[Tokens], order: Sequence[int], first: int, after: int, place: int
) -> list[tuple[int, int, int]]:
    """The group parted by the token at ``place``; sequences that end there come first."""

    def key(number: int) -> int:
        sequence = sequences[number]
        return sequence[place] if len(sequence) > place else -1

    parts, begun = [], first
    for at in range(first + 1, after + 1):
        if at == after or key(order[at]) != key(order[begun]):
            parts.append((begun, at, place))
            begun = at
    return parts
