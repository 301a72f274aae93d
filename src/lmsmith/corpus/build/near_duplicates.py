"""Near-duplicates: MinHash finds candidates, Jaccard verifies them, one of a cluster stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from lmsmith.corpus.build.clusters import (
    ask_shingles,
    give_shingles,
    large_star,
    node,
    send_shingles,
    small_star,
    stays,
    tangled,
    verify,
)
from lmsmith.corpus.build.document import Document, Yielded, removed
from lmsmith.corpus.build.engine import Data, Engine, Lookup, Pair, Pairs
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.build.minhash import MinHashConfig, shingle_sets, text_bands

MOST_ROUNDS = 60
"""Rounds halve the length of a chain of duplicates, so that no corpus needs as many."""


def find_near_duplicates(
    engine: Engine, data: Data, config: MinHashConfig, curated: tuple[str, ...], seed: int
) -> Lookup:
    """Id → the document that stays, for each that goes: of a cluster a curated source's document
    stays, else the one with the smallest id.

    Args:
        data: a checkpoint.
    """
    bands = engine.pairs(data, "near-bands", partial(band_nodes, config=config, seed=seed), curated)
    asked = engine.reduce(bands, "near-candidates", ask_shingles)
    wanted = engine.lookup(asked, "near-wanted")
    emit = partial(node_shingles, config=config, curated=curated)
    given = engine.pairs(data, "near-shingles", emit, wanted)
    sent = engine.reduce(engine.union([asked, given]), "near-sent", send_shingles)
    edges = engine.reduce(sent, "near-verified", partial(verify, similarity=config.similarity))
    clusters = joined(engine, edges)
    return engine.lookup(engine.reduce(clusters, "near-stays", stays), "near-removed")


def remove_near_duplicates(engine: Engine, data: Data, found: Lookup) -> Data:
    """The documents without those that `find_near_duplicates` found."""
    return engine.map(data, "near-duplicates", without_near_duplicates, found)


def joined(engine: Engine, edges: Pairs) -> Pairs:
    """Edges either way that join each node to the smallest of its connected component."""
    for number in range(MOST_ROUNDS):
        if not len(
            engine.lookup(
                engine.reduce(edges, f"near-tangled-{number}", tangled), f"near-count-{number}"
            )
        ):
            return edges
        larger = engine.reduce(edges, f"near-large-{number}", large_star)
        edges = engine.reduce(larger, f"near-small-{number}", small_star)
    raise AssertionError(f"clusters are not stars after {MOST_ROUNDS} rounds")


def band_nodes(
    documents: Iterable[Document], curated: tuple[str, ...], config: MinHashConfig, seed: int
) -> Iterator[Pair]:
    """(key of a band, node) for each band of each document with words."""
    for group in groups(documents):
        keys, counts = text_bands([document.text for document in group], config, seed)
        content = keys.astype("<u8").tobytes()
        row = 8 * config.bands
        for number, (document, count) in enumerate(zip(group, counts.tolist(), strict=True)):
            name = node(document.id, document.source in curated)
            if count:
                for place in range(number * row, (number + 1) * row, 8):
                    yield content[place : place + 8], name


def node_shingles(
    documents: Iterable[Document], wanted: Any, config: MinHashConfig, curated: tuple[str, ...]
) -> Iterator[Pair]:
    """(node, its shingles) for each document that is a candidate."""
    named = ((node(each.id, each.source in curated), each) for each in documents)
    candidates = (each for name, each in named if wanted.get(name) is not None)
    for group in groups(candidates):
        sets = shingle_sets([document.text for document in group], config.words)
        for document, shingles in zip(group, sets, strict=True):
            yield give_shingles(node(document.id, document.source in curated), shingles)


def without_near_duplicates(documents: Iterable[Document], kept: Any) -> Iterator[Yielded]:
    """The documents that stay; the others name the one that stays for them."""
    for document in documents:
        if (other := kept.get(document.id)) is None:
            yield document
        else:
            yield removed(document, f"near-duplicate of another document: {other}")
