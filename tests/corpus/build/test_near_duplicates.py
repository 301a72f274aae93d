"""Near-duplicates through the engine, whatever its chunks, against brute force."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from built_corpus import after
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.minhash import MinHashConfig, jaccard, shingle_sets
from lmsmith.corpus.build.near_duplicates import remove_near_duplicates

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
        lambda engine, data: remove_near_duplicates(engine, data, CONFIG, ("books",), 0),
        chunks,
    )
    assert set(built.documents) == expected(documents)
    assert 25 < len(built.documents) < len(documents) - 20
    assert len(built.removed) == len(documents) - len(built.documents)
    kept = {each.reason.rpartition(": ")[2] for each in built.removed}
    assert kept <= set(built.documents)
