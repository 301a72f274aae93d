"""Documents under a hidden rule, which only their examples tell: ``abcd>cadb`` line by line.

Every document draws its rule anew, so that no weight can know it: what a model gets right it has
read from the lines before, as in-context learning is (Brown et al. 2020, section 1 and 3.9.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghij"
SYMBOLS = ".,!/?-"
POINTER = ">"
"""Stands between what is given and what is asked."""

WORD = 3
"""Letters of a word, all different."""

COPIED_LETTERS = LETTERS[:8]
NOISE = 0.3
"""Probability that a letter of a noisy copy is replaced by one drawn uniformly, which may be
the same again."""


@dataclass(frozen=True)
class Example:
    """A line of a document.

    Attributes:
        given: left of the pointer.
        answer: right of it, without the line's end.
        clean: the answer without its noise; "" where there is none.
    """

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

    Asked is the word itself. Each copy tells something of it and none tells all, so that accuracy
    rises by degrees with their number: see `best_accuracy`.
    """
    hidden = _drawn(WORD, generator)

    def draw(generator: np.random.Generator) -> Example:
        is_kept = generator.random(WORD) >= NOISE
        noise = _drawn(WORD, generator)
        letters = zip(hidden, noise, is_kept, strict=True)
        return Example("", "".join(old if kept else new for old, new, kept in letters), hidden)

    return draw


def remove_symbols(generator: np.random.Generator) -> Rule:
    """Symbols stand between a word's letters; a hidden half of the symbols is to be removed.

    GPT-3's "random insertion in word" (Brown et al. 2020, section 3.9.2) with a rule to be found:
    there every symbol is removed.
    """
    removed = set(_shuffled(SYMBOLS, generator)[: len(SYMBOLS) // 2])

    def draw(generator: np.random.Generator) -> Example:
        word = _shuffled(LETTERS, generator)[:WORD]
        marks = [SYMBOLS[int(i)] for i in generator.integers(0, len(SYMBOLS), WORD - 1)]
        given = "".join(letter + mark for letter, mark in zip(word, [*marks, ""], strict=True))
        return Example(given, "".join(sign for sign in given if sign not in removed))

    return draw


def reorder(generator: np.random.Generator) -> Rule:
    """A word of four letters is written in another order, the same for all lines."""
    order = [int(i) for i in generator.permutation(WORD + 1)]

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
    return "".join(signs[int(i)] for i in generator.permutation(len(signs)))


def _drawn(count: int, generator: np.random.Generator) -> str:
    places = generator.integers(0, len(COPIED_LETTERS), count)
    return "".join(COPIED_LETTERS[int(i)] for i in places)


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
    """The probability that a letter's plurality in so many copies is right, ties broken by chance.

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
