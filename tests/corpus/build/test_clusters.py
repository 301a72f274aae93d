"""Clusters by shuffles of keys, against brute force and SciPy's connected components."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lmsmith.corpus.build.clusters import (
    ask_shingles,
    bucket_pairs,
    give_shingles,
    large_star,
    node,
    send_shingles,
    small_star,
    stays,
    tangled,
    verify,
)
from lmsmith.corpus.build.minhash import MinHashConfig, jaccard, shingle_sets, text_bands


def reduced(pairs: Iterable[tuple[Any, Any]], combine: Callable[..., Any]) -> list[tuple[Any, Any]]:
    """A shuffle in memory: each key with its values in order, the keys in a random order."""
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    keys = list(groups)
    random.Random(len(keys)).shuffle(keys)
    return [pair for key in keys for pair in combine(key, iter(sorted(groups[key])))]


def joined(edges: list[tuple[str, str]]) -> dict[str, str]:
    """Which node stays for each that does not, by rounds of stars."""
    rounds = 0
    while edges and reduced(edges, tangled):
        edges = reduced(reduced(edges, large_star), small_star)
        rounds += 1
        assert rounds < 20
    return dict(reduced(edges, stays))


@pytest.mark.parametrize("kind", ["random", "path", "star", "clique"])
def test_stars_find_connected_components(kind: str) -> None:
    draw = random.Random(3)
    names = [f"{n:03d}" for n in range(120)]
    draw.shuffle(names)
    edges = {
        "random": [tuple(draw.sample(names, 2)) for _ in range(70)],
        "path": list(pairwise(names)),
        "star": [(names[0], name) for name in names[1:]],
        "clique": list(combinations(names[:20], 2)),
    }[kind]
    both = [(node(a, False), node(b, False)) for a, b in [*edges, *[e[::-1] for e in edges]]]
    found = joined(both)

    places = [[int(a), int(b)] for a, b in edges]
    rows, columns = np.array(places).T
    _, labels = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), (120, 120)))
    smallest = {label: min(n for n in range(120) if labels[n] == label) for label in set(labels)}
    expected = {
        f"{n:03d}": f"{smallest[labels[n]]:03d}" for n in range(120) if smallest[labels[n]] != n
    }
    assert found == expected


def test_a_curated_document_stays_whatever_its_id() -> None:
    edges = [(node("a", False), node("z", True)), (node("z", True), node("a", False))]
    assert joined(edges) == {"a": "z"}


def test_all_pairs_of_a_small_bucket_and_few_of_a_large_one() -> None:
    assert set(bucket_pairs(list("aabcdefg"))) == set(combinations("abcdefg", 2))
    many = [f"{n:04d}" for n in range(3000)]
    pairs = set(bucket_pairs(many))
    assert len(pairs) < 6 * 3000
    assert all(a < b for a, b in pairs)
    assert max(Counter(name for pair in pairs for name in pair).values()) <= 1010
    assert joined([*pairs, *(pair[::-1] for pair in pairs)]) == dict.fromkeys(
        (name[1:] for name in many[1:]), many[0][1:]
    )


def near_duplicates(texts: dict[str, str], config: MinHashConfig) -> set[tuple[str, str]]:
    """Pairs that MinHash finds and Jaccard verifies."""
    keys, _ = text_bands(list(texts.values()), config, 0)
    buckets = [
        (key, node(id, False)) for id, row in zip(texts, keys.tolist(), strict=True) for key in row
    ]
    sets = shingle_sets(list(texts.values()), config.words)
    asked = reduced(buckets, ask_shingles)
    given = [give_shingles(node(id, False), s) for id, s in zip(texts, sets, strict=True)]
    sent = reduced([*asked, *given], send_shingles)
    edges = reduced(sent, partial(verify, similarity=config.similarity))
    assert {(b, a) for a, b in edges} == set(edges)
    return {(a[1:], b[1:]) for a, b in edges if a < b}


@pytest.mark.parametrize("letters", ["words", "characters"])
def test_recall_and_precision_against_brute_force(letters: str) -> None:
    draw = random.Random(11)
    texts: dict[str, str] = {}
    for number in range(150):
        if letters == "words":
            units = [str(draw.randrange(3000)) for _ in range(200)]
        else:
            units = [chr(0x4E00 + draw.randrange(3000)) for _ in range(200)]
        for copy in range(3):
            texts[f"{number:03d}.{copy}"] = ("" if letters == "characters" else " ").join(units)
            for _ in range(draw.randrange(1, 7)):
                units[draw.randrange(200)] = draw.choice(units)
    config = MinHashConfig(words=5, bands=16, rows=6, similarity=0.8)
    sets = dict(zip(texts, shingle_sets(list(texts.values()), config.words), strict=True))
    brute = {(a, b) for a, b in combinations(sorted(texts), 2) if jaccard(sets[a], sets[b]) >= 0.8}
    found = near_duplicates(texts, config)
    assert len(brute) > 200
    assert found <= brute  # precision 1
    assert len(found & brute) / len(brute) >= 0.98
