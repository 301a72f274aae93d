"""Sentences of a made-up language whose entropy is known: a chain of words with Zipf's law.

A text's loss falls smoothly with size and compute and never below the text's entropy, which is
the irreducible term of the power law; here, and only here, that term is known beforehand.
"""

from __future__ import annotations

import functools

import numpy as np

from lmsmith.evaluation.tasks.generated import common_words

WORDS = 256
FOLLOWERS = 64
"""Words that may follow a word, by ranks: the r-th with probability ∝ 1/r."""

_LANGUAGE = 20_201
"""The seed of the language, which is the same in every study."""


@functools.cache
def _language() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The words, who follows whom (WORDS, FOLLOWERS), and the ranks' cumulated probabilities."""
    generator = np.random.default_rng(_LANGUAGE)
    chosen = generator.permutation(len(common_words()))[:WORDS]
    words = tuple(common_words()[int(i)] for i in chosen)
    followers = np.stack([generator.permutation(WORDS)[:FOLLOWERS] for _ in range(WORDS)])
    shares = 1.0 / np.arange(1, FOLLOWERS + 1)
    return words, followers, np.cumsum(shares / shares.sum())


def draw_sentence(characters: int, generator: np.random.Generator) -> str:
    """Words until there are so many characters, the last one perhaps cut."""
    words, followers, cumulated = _language()
    ranks = np.searchsorted(cumulated, generator.random(characters // 4))
    word = int(generator.integers(WORDS))
    text = ""
    for rank in ranks:
        text += words[word] + " "
        if len(text) >= characters:
            break
        word = int(followers[word, min(int(rank), FOLLOWERS - 1)])
    return text[:characters]


def entropy_per_character() -> float:
    """The entropy of a sentence in nats a character: of the next word, by its characters.

    Which word follows is chance of H = −Σ p ln p, the same after every word; how it is spelled is
    none. It is divided by the mean length of a word and its space, words weighted by how often
    they occur in the long run (the chain's stationary distribution).
    """
    words, followers, cumulated = _language()
    shares = np.diff(cumulated, prepend=0.0)
    often = np.full(WORDS, 1.0 / WORDS)
    for _ in range(200):
        following = np.zeros(WORDS)
        np.add.at(following, followers, often[:, None] * shares)
        often = following
    length = float(often @ np.array([len(word) + 1 for word in words]))
    return float(-(shares * np.log(shares)).sum() / length)
