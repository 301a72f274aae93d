"""MinHash against exact Jaccard, a plain implementation, and datasketch."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmsmith.corpus.build import minhash
from lmsmith.corpus.build.minhash import (
    MinHashConfig,
    band_keys,
    jaccard,
    permutations,
    share_probability,
    shingle_sets,
    signatures,
    text_bands,
)
from lmsmith.corpus.words import normal_words


def near_duplicate(text: list[str], changed: float, draw: random.Random) -> list[str]:
    """The words, some of them replaced."""
    return [f"new{draw.randrange(10**9)}" if draw.random() < changed else word for word in text]


def text_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [str(draw.randrange(5000)) for _ in range(draw.randrange(40, 300))]
        other = near_duplicate(words, draw.choice([0.005, 0.02, 0.1]), draw)
        pairs.append((" ".join(words), " ".join(other)))
    return pairs


def plain_shingles(text: str, n: int) -> set[tuple[str, ...]]:
    words = normal_words(text)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)) if words}


def test_jaccard_is_that_of_the_sets_of_shingles() -> None:
    texts = [text for pair in text_pairs(40, 1) for text in pair]
    texts += ["", "one two", "One, two!", "北京大学在哪里", "北京大学在那里", "北京大学在这里吗"]
    sets = list(shingle_sets(texts, 3))
    plain = [plain_shingles(text, 3) for text in texts]
    for one, other in [(i, j) for i in range(len(texts)) for j in range(i)]:
        union = plain[one] | plain[other]
        expected = len(plain[one] & plain[other]) / len(union) if union else 0
        assert jaccard(sets[one], sets[other]) == pytest.approx(expected)


def test_signatures_are_the_smallest_permuted_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "_BLOCK", 16)
    generator = np.random.default_rng(2)
    sizes = [0, 3, 40, 1, 0, 7, 7, 2, 0]
    hashes = generator.integers(0, 1 << 64, sum(sizes), dtype=np.uint64)
    first_t = np.concatenate(([0], np.cumsum(sizes)))
    found = signatures(hashes, first_t, 5, 9)
    factors, terms = (each.tolist() for each in permutations(5, 9))
    for number, size in enumerate(sizes):
        part = [int(h) >> 32 for h in hashes[first_t[number] : first_t[number] + size]]
        expected = [
            min(((a * h + b) % 2**32 for h in part), default=2**32 - 1)
            for a, b in zip(factors, terms, strict=True)
        ]
        assert found[number].tolist() == expected


def test_equal_entries_are_an_unbiased_estimate_of_jaccard() -> None:
    pairs = text_pairs(60, 3)
    errors = []
    for pair in pairs:
        hashes, first_t = minhash.shingle_hashes(pair, 5)
        one, other = signatures(hashes, first_t, 400, 4)
        errors.append(float(np.mean(one == other)) - jaccard(*shingle_sets(pair, 5)))
    # Of 400 independent hashes, the standard error is at most 0.025; of the mean of 60, 0.0033.
    assert np.std(errors) < 0.03
    assert abs(np.mean(errors)) < 0.01


def test_pairs_share_a_band_as_often_as_the_formula_says() -> None:
    assert share_probability(0.8, 16, 6) == pytest.approx(1 - (1 - 0.8**6) ** 16)
    assert share_probability(0.7, 10, 1) == pytest.approx(1 - 0.3**10)
    draw = random.Random(5)
    words = [[str(draw.randrange(10**9)) for _ in range(60)] for _ in range(1500)]
    texts = [" ".join(w) for w in words] + [" ".join([*w[:42], "x", *w[43:]]) for w in words]
    config = MinHashConfig(words=5, bands=4, rows=3)
    keys, counts = text_bands(texts, config, seed=6)
    assert keys.shape == (3000, 4)
    assert counts.tolist() == [56] * 3000
    shared = float(np.mean((keys[:1500] == keys[1500:]).any(axis=1)))
    expected = share_probability(51 / 61, 4, 3)
    assert shared == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 1500) ** 0.5)


def test_a_band_shared_by_chance_is_rare_and_bands_differ() -> None:
    same = np.zeros((1, 12), np.uint32)
    assert len(set(band_keys(same, 4, 3)[0].tolist())) == 4
    (one,), (other,) = band_keys(np.array([[1, 2, 3], [3, 1, 2]], np.uint32), 1, 3)
    assert one != other
    draw = np.random.default_rng(0)
    keys = band_keys(draw.integers(0, 1 << 32, (5000, 12), dtype=np.uint32), 4, 3)
    assert len(np.unique(keys)) == keys.size


def test_datasketch_finds_the_same_similarities() -> None:
    datasketch = pytest.importorskip("datasketch")
    for pair in text_pairs(15, 7):
        theirs = [datasketch.MinHash(num_perm=256, seed=1) for _ in pair]
        for sketch, text in zip(theirs, pair, strict=True):
            sketch.update_batch([" ".join(s).encode() for s in plain_shingles(text, 5)])
        hashes, first_t = minhash.shingle_hashes(pair, 5)
        one, other = signatures(hashes, first_t, 256, 0)
        assert np.mean(one == other) == pytest.approx(theirs[0].jaccard(theirs[1]), abs=0.16)
