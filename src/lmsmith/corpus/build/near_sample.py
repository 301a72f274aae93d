"""Recall and precision of the near-duplicates: a sample of documents compared with all others.

The Jaccard similarity of each sampled document with every document of the corpus is counted by an
index of the sample's shingles, so that nothing is left to a chance of hashing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsmith.core.files import fingerprint
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.engine import Data, Engine, Lookup, Pair, Value
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.build.minhash import MinHashConfig, shingle_sets
from lmsmith.corpus.words import Hashes, Places


@dataclass(frozen=True)
class SampleIndex:
    """The shingles of the sampled documents, sorted.

    Attributes:
        key: fingerprint of the sample, for `engine.identity`.
        ids, stays: of each sampled document, and of the one that stays for it, perhaps itself.
        sizes_q: (sampled) shingles of each.
        hashes_h: different shingles of all of them.
        first_h: (shingles + 1) place of each shingle's first document in ``query_e``.
        query_e: numbers of the sampled documents that have each shingle.
    """

    key: str
    ids: tuple[str, ...]
    stays: tuple[str, ...]
    sizes_q: Places
    hashes_h: Hashes
    first_h: Places
    query_e: NDArray[np.int32]

    def similar(self, shingles: Hashes, least: float) -> list[int]:
        """Numbers of the sampled documents that are at least so similar to a set of shingles."""
        if not len(self.hashes_h):
            return []
        places = np.minimum(np.searchsorted(self.hashes_h, shingles), len(self.hashes_h) - 1)
        found = places[self.hashes_h[places] == shingles]
        counts = self.first_h[found + 1] - self.first_h[found]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        queries = self.query_e[np.repeat(self.first_h[found], counts) + inside]
        shared_q = np.bincount(queries, minlength=len(self.ids))
        jaccard_q = shared_q / np.maximum(1, self.sizes_q + len(shingles) - shared_q)
        similar: list[int] = np.flatnonzero((jaccard_q >= least) & (shared_q > 0)).tolist()
        return similar


def index_of(documents: Sequence[Document], removed: Lookup, words: int) -> SampleIndex:
    """The index of a sample.

    Args:
        removed: id → the document that stays, of those that are removed.
        words: of a shingle.
    """
    ids = tuple(document.id for document in documents)
    sets = list(shingle_sets([document.text for document in documents], words))
    sizes_q = np.array([len(each) for each in sets], np.int64)
    hashes = np.concatenate([np.zeros(0, np.uint64), *sets])
    order = np.argsort(hashes, kind="stable")
    hashes_h, first = np.unique(hashes[order], return_index=True)
    query_e = np.repeat(np.arange(len(sets), dtype=np.int32), sizes_q)[order]
    stays = tuple(removed.get(id) or id for id in ids)
    key = fingerprint([ids, stays, removed.key, words])
    return SampleIndex(key, ids, stays, sizes_q, hashes_h, np.append(first, len(hashes)), query_e)


def measure_near_duplicates(
    engine: Engine, data: Data, config: MinHashConfig, removed: Lookup, count: int, seed: int
) -> dict[str, Any] | None:
    """Recall and precision of a sample of about ``count`` documents; None without any.

    Args:
        data: the checkpoint that near-duplicates were searched in.
        removed: id → the document that stays.

    Returns:
        ``pairs`` of a sampled document and another that are similar enough by brute force, and
        how many of them are ``found``: of one cluster. ``removed`` sampled documents, how many of
        them have a duplicate (``right``), and how many are like the document that stays only by
        way of others (``by_a_chain``). ``recall`` and ``precision`` are shares of these.
    """
    total = sum(documents for documents, _ in engine.sizes(data).values())
    if not count or not total:
        return None
    drawn = engine.sample(data, seed, "near sample", min(1.0, count / total))
    index = index_of(drawn, removed, config.words)
    emit = partial(sample_neighbours, words=config.words, similarity=config.similarity)
    pairs = engine.pairs(data, "near-sample", emit, (index, removed))
    by_id = dict(engine.collect(engine.reduce(pairs, "near-measured", neighbours)))
    gone = [id for id, stays in zip(index.ids, index.stays, strict=True) if stays != id]
    found = {
        "sampled": len(index.ids),
        "pairs": sum(many for many, *_ in by_id.values()),
        "found": sum(same for _, same, _ in by_id.values()),
        "removed": len(gone),
        "right": sum(id in by_id for id in gone),
        "by_a_chain": sum(not (id in by_id and by_id[id][2]) for id in gone),
    }
    recall = found["found"] / found["pairs"] if found["pairs"] else None
    precision = found["right"] / found["removed"] if found["removed"] else None
    return {**found, "recall": recall, "precision": precision}


def sample_neighbours(
    documents: Iterable[Document],
    broadcast: tuple[SampleIndex, Any],
    words: int,
    similarity: float,
) -> Iterator[Pair]:
    """(sampled id, [1 if of one cluster, 1 if this one stays for it]) for each duplicate of it."""
    index, removed = broadcast
    for group in groups(documents):
        sets = shingle_sets([document.text for document in group], words)
        for document, shingles in zip(group, sets, strict=True):
            for query in index.similar(shingles, similarity):
                if index.ids[query] != document.id:
                    stays = removed.get(document.id) or document.id
                    same, this = stays == index.stays[query], document.id == index.stays[query]
                    yield index.ids[query], [int(same), int(this)]


def neighbours(id: str, values: Iterable[Value]) -> Iterable[Pair]:
    """(sampled id, [duplicates, those of its cluster, those that stay for it])."""
    sums = [0, 0, 0]
    for same, this in values:
        sums = [sums[0] + 1, sums[1] + same, sums[2] + this]
    return [(id, sums)]
