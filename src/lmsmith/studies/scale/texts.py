"""Generated texts: documents under a hidden rule, sums, and sentences of a made-up language."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lmsmith.evaluation.tasks.generated import common_words

# Patterns: lines ``abcd>cadb`` under a hidden rule, which only the lines before tell. Every
# document has its own rule, so that no weight can know it: what a model gets right it has read from
# its context (in-context learning, Brown et al. 2020, sections 1 and 3.9.2).

LETTERS = "abcdefghij"
SYMBOLS = ".,!/?-"
POINTER = ">"
"""Stands between a line's input and its answer."""

WORD = 3
"""Letters of a word, all different."""

COPIED_LETTERS = LETTERS[:8]
NOISE = 0.3
"""Probability that a letter of a noisy copy is replaced by one drawn uniformly, which may be
the same again."""


@dataclass(frozen=True)
class Example:
    """A line of a document; ``clean`` is the answer without its noise, "" where there is none."""

    given: str
    answer: str
    clean: str = ""

    @property
    def asked(self) -> Example:
        """The same as a question: its answer is the clean one."""
        return Example(self.given, self.clean or self.answer, self.clean)

    @property
    def line(self) -> str:
        return f"{self.given}{POINTER}{self.answer}\n"


Rule = Callable[[np.random.Generator], Example]
"""Draws a line; all its lines follow one hidden choice."""


def noisy_copies(generator: np.random.Generator) -> Rule:
    """A hidden word, its letters drawn independently; every line is a copy of it with noise.

    The answer is the word. Each copy tells something of it and none tells all, so that accuracy
    rises by degrees with their number: see `best_accuracy`.
    """
    hidden = _drawn(WORD, generator)

    def draw(generator: np.random.Generator) -> Example:
        is_kept = generator.random(WORD) >= NOISE
        noise = _drawn(WORD, generator)
        copy = "".join(np.where(is_kept, list(hidden), list(noise)))
        return Example("", copy, hidden)

    return draw


def remove_symbols(generator: np.random.Generator) -> Rule:
    """Symbols stand between a word's letters; a hidden half of the symbols is to be removed.

    GPT-3's "random insertion in word" (Brown et al. 2020, section 3.9.2) with a rule to be found:
    there every symbol is removed.
    """
    removed = set(_shuffled(SYMBOLS, generator)[: len(SYMBOLS) // 2])

    def draw(generator: np.random.Generator) -> Example:
        word = _shuffled(LETTERS, generator)[:WORD]
        marks = [SYMBOLS[i] for i in generator.integers(0, len(SYMBOLS), WORD - 1)]
        given = "".join(letter + mark for letter, mark in zip(word, [*marks, ""], strict=True))
        return Example(given, "".join(sign for sign in given if sign not in removed))

    return draw


def reorder(generator: np.random.Generator) -> Rule:
    """A word of four letters is written in another order, the same for all lines."""
    order = generator.permutation(WORD + 1)

    def draw(generator: np.random.Generator) -> Example:
        word = _shuffled(LETTERS, generator)[: WORD + 1]
        return Example(word, "".join(word[i] for i in order))

    return draw


PATTERNS: Mapping[str, Callable[[np.random.Generator], Rule]] = {
    "noisy_copies": noisy_copies,
    "remove_symbols": remove_symbols,
    "reorder": reorder,
}


def draw_document(kind: str, lines: int, generator: np.random.Generator) -> list[Example]:
    """Lines under one rule, drawn for this document alone."""
    rule = PATTERNS[kind](generator)
    return [rule(generator) for _ in range(lines)]


def _shuffled(signs: str, generator: np.random.Generator) -> str:
    return "".join(signs[i] for i in generator.permutation(len(signs)))


def _drawn(count: int, generator: np.random.Generator) -> str:
    return "".join(COPIED_LETTERS[i] for i in generator.integers(0, len(COPIED_LETTERS), count))


def best_accuracy(kind: str) -> Callable[[int], float] | None:
    """By number of examples, the accuracy of a reader who knows everything but the hidden rule.

    Of noisy copies: the likeliest letter of a column is the one that occurs most often in it, and
    of several such each is as likely. The word's letters are independent, so that its accuracy is
    a letter's, cubed. None for patterns whose every example tells most of the rule.
    """
    if kind != "noisy_copies":
        return None
    return lambda copies: _plurality(copies) ** WORD


def _plurality(copies: int) -> float:
    """The probability that a letter's plurality in some copies is right, ties broken by chance.

    Exact. With q the probability of the right letter in a copy and r of each of the m others, it is
    the sum over c right ones and j others that occur as often of
    C(m, j) copies! [x^(copies − c)] (x^c / c!)^j (Σ_{i<c} x^i / i!)^(m − j) · q^c r^(copies − c) /
    (c! (1 + j)): the multinomial counts of the others, none above c, by their exponential
    generating function.
    """
    others = len(COPIED_LETTERS) - 1
    wrong = NOISE / len(COPIED_LETTERS)
    right = 1.0 - others * wrong
    terms = []
    for often in range(copies + 1):
        rarer = np.array([1.0 / math.factorial(i) for i in range(often)] or [0.0])
        for tied in range(others + 1):
            ways = np.ones(1)
            for _ in range(others - tied):
                ways = np.convolve(ways, rarer)
            rest = copies - often - tied * often
            if not 0 <= rest < len(ways):
                continue
            count = math.comb(others, tied) * math.factorial(copies) * float(ways[rest])
            count /= math.factorial(often) ** (1 + tied)
            terms.append(count * right**often * wrong ** (copies - often) / (1 + tied))
    return math.fsum(terms)


# Sums of two numbers: ``47+85=132`` answers directly; ``47+85:7+5+0=12;4+8+1=13;=132`` adds the
# digits from the right, each step with the carry of the one before (chain of thought, Wei et al.
# 2022; scratchpads, Nye et al. 2021). The sign after the second number chooses between the two.

DIRECT, CHAIN = "=", ":"
HELD_OUT = 8
"""One of this number of pairs is never trained on."""


@dataclass(frozen=True)
class Sum:
    """Two numbers to be added."""

    left: int
    right: int

    @property
    def answer(self) -> str:
        return str(self.left + self.right)

    @property
    def held_out(self) -> bool:
        """Whether it, or the same with its numbers exchanged, is kept for measuring."""
        low, high = sorted((self.left, self.right))
        mixed = (low * 0x9E3779B1 + high * 0x85EBCA77) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        return (mixed ^ (mixed >> 13)) % HELD_OUT == 0

    def prompt(self, style: str) -> str:
        return f"{self.left}+{self.right}{style}"

    def reply(self, style: str) -> str:
        return self.answer if style == DIRECT else f"{self.chain}={self.answer}"

    @property
    def chain(self) -> str:
        """The steps, from the last digits on: ``7+5+0=12;4+8+1=13;``."""
        left, right, steps, carry = str(self.left), str(self.right), [], 0
        width = max(len(left), len(right))
        for one, other in zip(left.zfill(width)[::-1], right.zfill(width)[::-1], strict=True):
            total = int(one) + int(other) + carry
            steps.append(f"{one}+{other}+{carry}={total:02d};")
            carry = total // 10
        return "".join(steps)


def read_answer(style: str, reply: str) -> str:
    """The answer in a reply: all of it, or the text after its last sign of equality."""
    return reply if style == DIRECT else reply.rpartition("=")[2]


def draw_sum(digits: int, generator: np.random.Generator, *, held_out: bool) -> Sum:
    """Two random numbers of ``digits`` digits: a held-out pair or another one."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    while True:
        left, right = (int(x) for x in generator.integers(low, 10**digits, size=2))
        found = Sum(left, right)
        if found.held_out == held_out:
            return found


# Sentences of a made-up language whose entropy is known: a chain of words with Zipf's law. A text's
# loss falls smoothly with size and compute and never below the text's entropy, which is the
# irreducible term of the power law; here, and only here, that term is known beforehand.

WORDS = 256
FOLLOWERS = 64
"""Words that may follow a word, by ranks: the r-th with probability ∝ 1/r."""

_LANGUAGE = 20_201
"""The seed of the language, which is the same in every study."""


@functools.cache
def _language() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The words, their followers (WORDS, FOLLOWERS), and the ranks' cumulated probabilities."""
    generator = np.random.default_rng(_LANGUAGE)
    chosen = generator.permutation(len(common_words()))[:WORDS]
    words = tuple(common_words()[i] for i in chosen)
    followers = np.stack([generator.permutation(WORDS)[:FOLLOWERS] for _ in range(WORDS)])
    shares = 1.0 / np.arange(1, FOLLOWERS + 1)
    return words, followers, np.cumsum(shares / shares.sum())


def draw_sentence(characters: int, generator: np.random.Generator) -> str:
    """Words up to a number of characters; the last word may be cut."""
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

    The next word has the entropy H = −Σ p ln p, the same after every word; its spelling has none.
    H is divided by the mean length of a word and its space, words weighted by how often they occur
    in the long run (the chain's stationary distribution).
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
