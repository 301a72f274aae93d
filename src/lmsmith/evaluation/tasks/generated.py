"""GPT-3's synthetic tasks, made from a seed (Brown et al. 2020, sections 3.9.1 and 3.9.2)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from importlib import resources

import numpy as np

from lmsmith.evaluation.tasks.safety_sets import SAFETY_SETS

Row = dict[str, str]

PUNCTUATION = " .,!/?"
"""What random insertion puts between letters."""

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


def arithmetic_rows(count: int, seed: int, *, kind: str) -> list[Row]:
    """Questions of one of the ten kinds: ``{"context", "completion"}``, as published.

    Operands are uniform below 10 to the number of digits; with three operands, uniform below 10,
    two operations of + − ×, the first pair in parentheses.
    """
    generator = np.random.default_rng([seed, ARITHMETIC.index(kind)])
    digits, sign = int(kind[0]), kind[3:]
    rows: list[Row] = []
    for _ in range(count):
        if sign == "composite":
            a, b, c = (int(x) for x in generator.integers(0, 10, size=3))
            first, second = (str(x) for x in generator.choice(list(_OPERATIONS), size=2))
            asked = f"({a} {first} {b}) {second} {c}"
            answer = _OPERATIONS[second](_OPERATIONS[first](a, b), c)
        else:
            a, b = (int(x) for x in generator.integers(0, 10**digits, size=2))
            word = {"plus": "+", "minus": "-", "times": "*"}[sign]
            asked, answer = f"{a} {sign} {b}", _OPERATIONS[word](a, b)
        rows.append({"context": f"\n\nQ: What is {asked}?\n\nA:", "completion": f" {answer}"})
    return rows


def scramble_rows(count: int, seed: int, *, kind: str) -> list[Row]:
    """Words with their letters moved, of one of the five kinds, as published.

    Words are drawn without repetition from a list of common English ones, of four letters or
    more; a word that its scrambling does not change is left out.
    """
    generator = np.random.default_rng([seed, SCRAMBLES.index(kind)])
    rows: list[Row] = []
    for place in generator.permutation(len(common_words())):
        word = common_words()[int(place)]
        scrambled = _SCRAMBLERS[kind](word, generator)
        if scrambled != word and len(rows) < count:
            rows.append({"context": f"\n{scrambled} =", "completion": f" {word}"})
    return rows


@functools.cache
def common_words() -> tuple[str, ...]:
    """The words that scrambles are made of."""
    text = resources.files("lmsmith.evaluation.tasks").joinpath("words.txt").read_text("utf-8")
    return tuple(text.split())


def _cycled(word: str, generator: np.random.Generator) -> str:
    turn = int(generator.integers(1, len(word)))
    return word[turn:] + word[:turn]


def _inside_shuffled(word: str, generator: np.random.Generator, kept: int) -> str:
    """All but the first and last ``kept`` letters shuffled."""
    middle = list(word[kept : len(word) - kept])
    if len(set(middle)) < 2:
        return word
    while True:
        shuffled = [middle[int(i)] for i in generator.permutation(len(middle))]
        if shuffled != middle:
            return word[:kept] + "".join(shuffled) + word[len(word) - kept :]


def _with_insertions(word: str, generator: np.random.Generator) -> str:
    marks = [PUNCTUATION[int(i)] for i in generator.integers(0, len(PUNCTUATION), len(word) - 1)]
    return "".join(letter + mark for letter, mark in zip(word, [*marks, ""], strict=True))


_SCRAMBLERS: Mapping[str, Callable[[str, np.random.Generator], str]] = {
    "cycle": _cycled,
    "anagram_1": lambda word, generator: _inside_shuffled(word, generator, 1),
    "anagram_2": lambda word, generator: _inside_shuffled(word, generator, 2),
    "insertion": _with_insertions,
    "reversed": lambda word, generator: word[::-1],
}

SCRAMBLES = tuple(_SCRAMBLERS)
ARITHMETIC = (
    "2d_plus",
    "2d_minus",
    "3d_plus",
    "3d_minus",
    "4d_plus",
    "4d_minus",
    "5d_plus",
    "5d_minus",
    "2d_times",
    "1d_composite",
)


def _generators() -> Iterator[tuple[str, Callable[[int, int], list[Row]]]]:
    for kind in ARITHMETIC:
        yield f"arithmetic_{kind}", functools.partial(arithmetic_rows, kind=kind)
    for kind in SCRAMBLES:
        yield f"scramble_{kind}", functools.partial(scramble_rows, kind=kind)


GENERATORS: Mapping[str, Callable[[int, int], list[Row]]] = dict(_generators()) | dict(SAFETY_SETS)
"""Name → items from (count, seed)."""
