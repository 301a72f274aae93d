"""Clusters of near-duplicates: pairs of a bucket, verified by Jaccard, and connected components.

Each function is what a shuffle does with one key and its sorted values: it yields keys and values.
A node is a document's id whose order says which document of a cluster stays: see `node`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmsmith.corpus.build.document import digest
from lmsmith.corpus.build.minhash import jaccard
from lmsmith.corpus.words import Hashes

FIRST, BEFORE = 3, 3
"""A member of a bucket is paired with the bucket's first members, and with those just before it."""
LARGE = 1000
"""Members after so many are paired with those just before alone: no node has too many pairs."""

_ASKS, _GIVES = 0, 1


def node(id: str, curated: bool) -> str:
    """A document as a node: curated ones come first, then the smallest id."""
    return f"{0 if curated else 1}{id}"


def id_of(name: str) -> str:
    """The id of a node's document."""
    return name[1:]


def bucket_pairs(members: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a bucket's nodes to verify, the smaller first; all in a bucket of up to seven.

    Args:
        members: sorted nodes, perhaps repeated.
    """
    unique = list(dict.fromkeys(members))
    for place, other in enumerate(unique):
        first = range(min(FIRST, place)) if place < LARGE else range(0)
        before = {*first, *range(max(0, place - BEFORE), place)}
        yield from ((unique[one], other) for one in sorted(before))


def ask_shingles(bucket: bytes | str, members: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """What the pairs of a bucket need: the shingles of either node, for the other."""
    del bucket
    if len(members) > 1:
        for one, other in bucket_pairs(members):
            yield one, [_ASKS, other]
            yield other, [_ASKS, one]


def give_shingles(name: str, shingles: Hashes) -> tuple[str, list[Any]]:
    """A node's sorted set of shingles, for `send_shingles`."""
    return name, [_GIVES, shingles.astype("<u8").tobytes()]


def send_shingles(name: str, values: Sequence[Sequence[Any]]) -> Iterator[tuple[bytes, list[Any]]]:
    """A node's shingles, to each pair that it is in."""
    given = [value[1] for value in values if value[0] == _GIVES]
    for other in dict.fromkeys(value[1] for value in values if value[0] == _ASKS):
        for shingles in given[:1]:
            yield digest(*sorted((name, other))), [name, shingles]


def verify(
    pair: bytes, values: Sequence[Sequence[Any]], similarity: float
) -> Iterator[tuple[str, str]]:
    """The edge between two nodes, either way, if their shingles are similar enough."""
    del pair
    (one, *given), (other, *compared) = values
    if jaccard(*(np.frombuffer(each, "<u8") for each in (*given, *compared))) >= similarity:
        yield one, other
        yield other, one


def large_star(name: str, neighbours: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Join the larger neighbours of a node to its smallest (Kiveris et al. 2014, section 3).

    Args:
        name: the node.
        neighbours: all of its neighbours.

    Yields:
        Edges from the larger node to the smaller, for `small_star`.
    """
    smallest = min(name, *neighbours)
    yield from ((each, smallest) for each in dict.fromkeys(neighbours) if each > name)


def small_star(name: str, smaller: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Join a node and its smaller neighbours to the smallest of them.

    Yields:
        Edges either way, for the next `large_star`. Once no node is `tangled`, each cluster is a
        star around its smallest node.
    """
    smallest = min(smaller)
    for each in dict.fromkeys((*smaller, name)):
        if each != smallest:
            yield each, smallest
            yield smallest, each


def tangled(name: str, neighbours: Sequence[str]) -> Iterator[tuple[str, int]]:
    """One pair if the node's neighbours are not those of a star around its smallest node."""
    smaller = {each for each in neighbours if each < name}
    if len(smaller) > 1 or (smaller and max(neighbours) > name):
        yield "tangled", 1


def stays(name: str, neighbours: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Id of a document that is not its cluster's smallest, and the id of the one that stays."""
    if (smallest := min(neighbours)) < name:
        yield id_of(name), id_of(smallest)
