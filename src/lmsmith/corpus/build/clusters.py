"""Clusters of near-duplicates: pairs of a bucket, verified by Jaccard, and connected components.

Each function is what a shuffle does with one key and its values in order, of which it holds only a
few: it yields keys and values.
A node is a document's id whose order says which document of a cluster stays: see `node`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np

from lmsmith.corpus.build.document import digest
from lmsmith.corpus.build.minhash import jaccard
from lmsmith.corpus.words import Hashes

FIRST, BEFORE = 3, 3
"""A member of a bucket is paired with the bucket's first members, and with those just before it."""
LARGE = 1000
"""Members after so many are paired with those just before alone: no node has too many pairs."""

_GIVES, _ASKS = 0, 1
"""In this order: the shingles come before those that ask for them."""


def node(id: str, curated: bool) -> str:
    """A document as a node: curated ones come first, then the smallest id."""
    return f"{0 if curated else 1}{id}"


def id_of(name: str) -> str:
    """The id of a node's document."""
    return name[1:]


def bucket_pairs(members: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a bucket's nodes to verify, the smaller first; all in a bucket of up to seven.

    Args:
        members: nodes in order, perhaps repeated.
    """
    first: list[str] = []
    before: deque[str] = deque(maxlen=BEFORE)
    for place, (other, _) in enumerate(groupby(members)):
        if place < LARGE:
            yield from ((one, other) for one in first if one not in before)
        yield from ((one, other) for one in before)
        before.append(other)
        if place < FIRST:
            first.append(other)


def ask_shingles(bucket: bytes | str, members: Iterable[str]) -> Iterator[tuple[str, list[Any]]]:
    """What the pairs of a bucket need: the shingles of either node, for the other."""
    del bucket
    for one, other in bucket_pairs(members):
        yield one, [_ASKS, other]
        yield other, [_ASKS, one]


def give_shingles(name: str, shingles: Hashes) -> tuple[str, list[Any]]:
    """A node's sorted set of shingles, for `send_shingles`."""
    return name, [_GIVES, shingles.astype("<u8").tobytes()]


def send_shingles(name: str, values: Iterable[Sequence[Any]]) -> Iterator[tuple[bytes, list[Any]]]:
    """A node's shingles, to each pair that it is in."""
    shingles = None
    for (kind, content), _ in groupby(values):
        if kind == _GIVES:
            shingles = content
        elif shingles is not None:
            yield digest(*sorted((name, content))), [name, shingles]


def verify(
    pair: bytes, values: Iterable[Sequence[Any]], similarity: float
) -> Iterator[tuple[str, str]]:
    """The edge between two nodes, either way, if their shingles are similar enough."""
    del pair
    (one, *given), (other, *compared) = values
    if jaccard(*(np.frombuffer(each, "<u8") for each in (*given, *compared))) >= similarity:
        yield one, other
        yield other, one


def large_star(name: str, neighbours: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Join the larger neighbours of a node to its smallest (Kiveris et al. 2014, section 3).

    Args:
        name: the node.
        neighbours: all of its neighbours, in order.

    Yields:
        Edges from the larger node to the smaller, for `small_star`.
    """
    smallest = name
    for each, _ in groupby(neighbours):
        smallest = min(smallest, each)
        if each > name:
            yield each, smallest


def small_star(name: str, smaller: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Join a node and its smaller neighbours, in order, to the smallest of them.

    Yields:
        Edges either way, for the next `large_star`. Once no node is `tangled`, each cluster is a
        star around its smallest node.
    """
    nodes = (each for each, _ in groupby(chain(smaller, [name])))
    smallest = next(nodes)
    for each in nodes:
        yield each, smallest
        yield smallest, each


def tangled(name: str, neighbours: Iterable[str]) -> Iterator[tuple[str, int]]:
    """One pair if the node's neighbours are not those of a star around its smallest node.

    The key is one of 256, so that no task has all of these pairs.
    """
    smaller = 0
    for each, _ in groupby(neighbours):
        if smaller and each != name:  # a second smaller neighbour, or a larger one beside it
            yield f"{digest(name)[0]:02x}", 1
            return
        smaller += each < name


def stays(name: str, neighbours: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Id of a document that is not its cluster's smallest, and the id of the one that stays."""
    if (smallest := next(iter(neighbours))) < name:
        yield id_of(name), id_of(smallest)
