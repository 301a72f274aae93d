"""MinHash: shingles of documents, signatures of shingles, and bands of signatures.

Two documents have equal entries in a signature with probability J, the Jaccard similarity of their
sets of shingles (Broder 1997). With b bands of r rows they share a band with probability
1 - (1 - J^r)^b. GPT-3 used 10 hashes (Brown et al. 2020, appendix A): 10 bands of 1 row.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lmsmith.corpus.words import Hashes, Places, batches, gram_hashes, read_words

Signatures: TypeAlias = NDArray[np.uint32]

_BLOCK = 1 << 16
"""Shingles hashed at once, so that they stay in the processor's cache."""
_MULTIPLY = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class MinHashConfig:
    """Settings of the fuzzy de-duplication."""

    enabled: bool = True
    """Keep one of each cluster of near-duplicates: a curated one, else that of the smallest id."""
    words: Annotated[int, Meta(ge=1, le=100)] = 5
    """Words of a shingle; characters in scripts without spaces between words."""
    bands: Annotated[int, Meta(ge=1, le=1000)] = 16
    """Groups of hashes. Documents that share one group are compared. GPT-3: 10."""
    rows: Annotated[int, Meta(ge=1, le=100)] = 6
    """Hashes of a group. More of them find fewer documents to compare. GPT-3: 1."""
    similarity: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Least Jaccard similarity of the shingles of two documents that are duplicates."""


def share_probability(similarity: float, bands: int, rows: int) -> float:
    """The probability that two documents of a Jaccard similarity share a band."""
    return float(1 - (1 - similarity**rows) ** bands)


def shingle_hashes(texts: Sequence[str], words: int) -> tuple[Hashes, Places]:
    """Hashes of the shingles of texts, in order and with repetitions.

    A text of fewer words has one shingle, its whole. A text without words has none.

    Returns:
        The hashes, and (texts + 1) the number of each text's first one.
    """
    return gram_hashes(read_words(texts), words, whole_if_shorter=True)


def shingle_sets(texts: Sequence[str], words: int) -> Iterator[Hashes]:
    """The sorted set of each text's shingles."""
    for part in batches(texts):
        hashes, first_t = shingle_hashes(texts[part], words)
        for one, following in pairwise(first_t.tolist()):
            ordered = np.sort(hashes[one:following])
            yield ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection of two sorted sets, divided by that of their union."""
    if not len(one) or not len(other):
        return 0.0
    places = np.searchsorted(one, other)
    shared = int(np.count_nonzero(one[np.minimum(places, len(one) - 1)] == other))
    return shared / (len(one) + len(other) - shared)


def signatures(hashes: Hashes, first_t: Places, count: int, seed: int) -> Signatures:
    """Smallest of the permuted shingles of each text, under each of `count` permutations.

    A permutation is x → a·x + b modulo 2^32 of the upper half of the hash, a odd.

    Args:
        hashes: shingles of the texts, one text after the other.
        first_t: (texts + 1) number of each text's first shingle.
        count: number of permutations.
        seed: of the permutations.

    Returns:
        (texts, count); a text without shingles has the largest number everywhere.
    """
    factors, terms = permutations(count, seed)
    full = np.flatnonzero(np.diff(first_t))
    signatures_th = np.full((len(first_t) - 1, count), np.iinfo(np.uint32).max, np.uint32)
    halves = (hashes >> np.uint64(32)).astype(np.uint32)
    starts = first_t[full]
    for part in _blocks(starts, len(halves)):
        begin = starts[part.start]
        end = starts[part.stop] if part.stop < len(starts) else len(halves)
        block, places = halves[begin:end], starts[part] - begin
        permuted = np.empty_like(block)
        smallest_ht = np.empty((count, len(places)), np.uint32)
        for number in range(count):
            np.multiply(block, factors[number], out=permuted)
            permuted += terms[number]
            np.minimum.reduceat(permuted, places, out=smallest_ht[number])
        signatures_th[full[part]] = smallest_ht.T
    return signatures_th


def band_keys(signatures_th: Signatures, bands: int, rows: int) -> Hashes:
    """(texts, bands) a hash of each band of each signature, which differs between bands."""
    texts = len(signatures_th)
    cells = signatures_th[:, : bands * rows].reshape(texts, bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (texts, bands)).copy()
    for row in range(rows):
        keys ^= cells[:, :, row]
        keys *= _MULTIPLY
        keys ^= keys >> np.uint64(31)
    return keys


def text_bands(texts: Sequence[str], config: MinHashConfig, seed: int) -> tuple[Hashes, Places]:
    """Band keys of texts.

    Returns:
        (texts, bands) the keys, and (texts) the number of shingles: a text without any has no
        duplicates, and its keys mean nothing.
    """
    keys, counts = [np.zeros((0, config.bands), np.uint64)], [np.zeros(0, np.int64)]
    for part in batches(texts):
        hashes, first_t = shingle_hashes(texts[part], config.words)
        signatures_th = signatures(hashes, first_t, config.bands * config.rows, seed)
        keys.append(band_keys(signatures_th, config.bands, config.rows))
        counts.append(np.diff(first_t))
    return np.concatenate(keys), np.concatenate(counts)


@functools.lru_cache(8)
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors, all odd, and terms of so many permutations."""
    size = 4 * count
    drawn = hashlib.shake_128(f"minhash {seed}".encode()).digest(2 * size)
    numbers = np.frombuffer(drawn, "<u4").astype(np.uint32)
    return numbers[:count] | np.uint32(1), numbers[count:]


def _blocks(starts: Places, total: int) -> Iterator[slice]:
    """Slices of texts that have together a block of shingles at most, or are one text."""
    ends = np.append(starts[1:], total)
    place = 0
    while place < len(starts):
        stop = int(np.searchsorted(ends, starts[place] + _BLOCK, "right"))
        yield slice(place, max(stop, place + 1))
        place = max(stop, place + 1)
