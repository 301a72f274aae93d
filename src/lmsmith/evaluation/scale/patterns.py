"""Documents under a hidden rule, which only their examples tell: ``bc>gh`` line by line.

Every document draws its rule anew, so that no weight can know it: what a model gets right it has
read from the lines before, as in-context learning is (Brown et al. 2020, section 1 and 3.9.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghij"
SYMBOLS = ".,!/?-"
POINTER = ">"
"""Stands between what is given and what is asked."""

WORD = 3
"""Letters of a word, all different."""

CODED_LETTERS, CODED_WORD = LETTERS[:8], 2
"""Of the cipher, whose reader has to look every letter up."""


@dataclass(frozen=True)
class Example:
    """A line of a document.

    Attributes:
        given: left of the pointer.
        answer: right of it, without the line's end.
    """

    given: str
    answer: str

    @property
    def prompt(self) -> str:
        return self.given + POINTER

    @property
    def line(self) -> str:
        return f"{self.given}{POINTER}{self.answer}\n"


Rule = Callable[[np.random.Generator], Example]
"""Draws a line; all its lines follow one hidden choice."""


def cipher(generator: np.random.Generator, *, varied: bool = False) -> Rule:
    """Each letter stands for another, by a permutation of the letters.

    An example tells two of eight letters: see `best_accuracy` for what can be known after k. With
    ``varied`` words are of 2 to 8 of the letters. Where all are equally likely, nothing short of
    the whole trick lowers the loss, and small models were not seen to find it; fewer letters
    reward its parts.
    """
    code = dict(zip(CODED_LETTERS, _shuffled(CODED_LETTERS, generator), strict=True))
    letters = _shuffled(CODED_LETTERS, generator)
    if varied:
        letters = letters[: int(generator.integers(CODED_WORD, len(letters) + 1))]

    def draw(generator: np.random.Generator) -> Example:
        word = _shuffled(letters, generator)[:CODED_WORD]
        return Example(word, "".join(code[letter] for letter in word))

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
    "cipher": cipher,
    "remove_symbols": remove_symbols,
    "reorder": reorder,
}


def draw_document(
    kind: str, lines: int, generator: np.random.Generator, *, varied: bool = False
) -> list[Example]:
    """Lines under one rule, drawn for this document alone.

    Args:
        varied: easier documents among them, as in training; measured are those without.
    """
    is_cipher = kind == "cipher"
    rule = cipher(generator, varied=varied) if is_cipher else PATTERNS[kind](generator)
    return [rule(generator) for _ in range(lines)]


def prompt_of(examples: Sequence[Example]) -> str:
    """All but the last with their answers, and the last without."""
    return "".join(example.line for example in examples[:-1]) + examples[-1].prompt


def _shuffled(signs: str, generator: np.random.Generator) -> str:
    return "".join(signs[int(i)] for i in generator.permutation(len(signs)))


def best_accuracy(kind: str) -> Callable[[int], float] | None:
    """By number of examples, the share that a reader who forgets nothing and never guesses gets.

    Of the cipher: that all letters of the word have been in the k words before,
    Σ_j (−1)^j C(w, j) (C(n − j, w) / C(n, w))^k with n letters, w of them in a word. None for
    patterns whose every example tells most of the rule.
    """
    if kind != "cipher":
        return None
    letters, words = len(CODED_LETTERS), math.comb(len(CODED_LETTERS), CODED_WORD)

    def share(shots: int) -> float:
        signed = [1.0, -1.0]
        return math.fsum(
            signed[missing % 2]
            * math.comb(CODED_WORD, missing)
            * (math.comb(letters - missing, CODED_WORD) / words) ** shots
            for missing in range(CODED_WORD + 1)
        )

    return share
