"""Near-duplicates through the engine, whatever its chunks, against brute force."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from built_corpus import after, given
from lmsmith.corpus.build.document import Document, point
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.minhash import MinHashConfig, jaccard, shingle_sets
from lmsmith.corpus.build.near_duplicates import find_near_duplicates, remove_near_duplicates
from lmsmith.corpus.build.near_sample import measure_near_duplicates

CONFIG = MinHashConfig(words=3, bands=20, rows=4, similarity=0.7)


def corpus() -> list[Document]:
    """Chains of documents, each with a few words other than the one before, and an empty one."""
    draw = random.Random(1)
    documents = [Document("empty", "crawl", " ... "), Document("empty too", "crawl", "!")]
    for chain in range(25):
        words = [str(draw.randrange(10_000)) for _ in range(100)]
        for _ in range(draw.randrange(1, 7)):
            source = draw.choice(["books", "crawl", "crawl"])
            id = f"{draw.randrange(10**6):06d}-{chain}"
            documents.append(Document(id, source, " ".join(words)))
            for _ in range(3):
                words[draw.randrange(100)] = str(draw.randrange(10_000))
    return documents


def expected(documents: list[Document]) -> set[str]:
    """Ids that stay by brute force."""
    sets = list(shingle_sets([document.text for document in documents], CONFIG.words))
    pairs = [
        (a, b)
        for a, b in combinations(range(len(documents)), 2)
        if jaccard(sets[a], sets[b]) >= CONFIG.similarity
    ]
    rows, columns = np.array(pairs).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), (len(documents),) * 2)
    labels = connected_components(graph)[1]
    best: dict[int, Document] = {}
    for label, document in zip(labels, documents, strict=True):
        best.setdefault(label, document)
        best[label] = min(best[label], document, key=lambda d: (d.source != "books", d.id))
    return {document.id for document in best.values()}


@pytest.mark.parametrize("chunks", [1, 4])
def test_one_of_each_cluster_stays(tmp_path: Path, chunks: int) -> None:
    documents = corpus()
    random.Random(chunks).shuffle(documents)
    built = after(
        tmp_path,
        documents,
        lambda engine, data: remove_near_duplicates(
            engine, data, find_near_duplicates(engine, data, CONFIG, ("books",), 0)
        ),
        chunks,
    )
    assert set(built.documents) == expected(documents)
    assert 25 < len(built.documents) < len(documents) - 20
    assert len(built.removed) == len(documents) - len(built.documents)
    kept = {each.reason.rpartition(": ")[2] for each in built.removed}
    assert kept <= set(built.documents)


@pytest.mark.parametrize("bands", [20, 1])
def test_a_sample_says_what_was_found(tmp_path: Path, bands: int) -> None:
    """With one band of three rows many pairs are missed, and the sample says how many."""
    documents = corpus()
    config = replace(CONFIG, bands=bands)
    sets = list(shingle_sets([document.text for document in documents], CONFIG.words))
    engine = LocalEngine(tmp_path, 1)
    data = engine.read("read", [documents[::2], documents[1::2]], given, "all")
    removed = find_near_duplicates(engine, data, config, ("books",), 0)
    for count in (len(documents), 40):
        measured = measure_near_duplicates(engine, data, config, removed, count, 5)
        assert measured is not None
        share = min(1.0, count / len(documents))
        drawn = [n for n, each in enumerate(documents) if point(5, "near sample", each.id) < share]
        stays = [removed.get(document.id) or document.id for document in documents]
        pairs = [
            (a, b)
            for a in drawn
            for b in range(len(documents))
            if a != b and jaccard(sets[a], sets[b]) >= CONFIG.similarity
        ]
        gone = {a for a in drawn if stays[a] != documents[a].id}
        near = {a for a, b in pairs if documents[b].id == stays[a]}
        same = [stays[a] == stays[b] for a, b in pairs]
        assert measured == {
            "sampled": len(drawn),
            "pairs": len(pairs),
            "found": sum(same),
            "removed": len(gone),
            "right": len(gone & {a for a, _ in pairs}),
            "by_a_chain": len(gone - near),
            "recall": sum(same) / len(pairs),
            "precision": 1.0,
        }
        if bands == 1:
            assert measured["recall"] < 0.9
        assert measured["by_a_chain"] > 0 or count == 40
    assert measure_near_duplicates(engine, data, config, removed, 0, 5) is None
