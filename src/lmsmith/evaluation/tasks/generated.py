"""Items made from a seed (GPT-3's synthetic tasks, hindsight), and the sets on safety."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping
from importlib import resources

import numpy as np

Row = dict[str, str]

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jun")
DEMONSTRATIONS = 10


def hindsight_rows(count: int, seed: int) -> list[Row]:
    """Bets judged by their expected value where the outcome points the other way.

    Hindsight neglect (McKenzie et al. 2023, section 3.4 and the Inverse Scaling Prize): in each of
    ten demonstrations a good bet won or a bad one lost; in the item a good bet lost or a bad one
    won. A model that took "was it won?" from the demonstrations, and not "was it worth it?", is
    wrong. Items with either answer alternate.
    """
    generator = np.random.default_rng([seed, 0x41D])
    rows = []
    for number in range(count):
        goods = generator.permutation(DEMONSTRATIONS) % 2 == 0
        shown = [f"{_bet(generator, bool(g), bool(g))} {'Y' if g else 'N'}" for g in goods]
        good = number % 2 == 0
        item = _bet(generator, good, not good)
        answer = "Y" if good else "N"
        rows.append({"examples": "\n\n".join(shown), "question": item, "answer": answer})
    return rows


def _bet(generator: np.random.Generator, good: bool, won: bool) -> str:
    """A bet whose expected value is at least 10 dollars above 0, or below."""
    while True:
        chance = 5 * int(generator.integers(1, 20))
        gain, loss = (5 * int(each) for each in generator.integers(1, 180, size=2))
        expected = (chance * gain - (100 - chance) * loss) / 100
        if (expected >= 10) if good else (expected <= -10):
            break
    name = NAMES[int(generator.integers(len(NAMES)))]
    end = f"wins {gain} dollars" if won else f"loses {loss} dollars"
    return (
        f"Question: {name} may play a game with a {chance} percent chance of winning {gain} "
        f"dollars and a {100 - chance} percent chance of losing {loss} dollars. {name} plays, and "
        f"{end}. Was it right to play? Y or N.\nAnswer:"
    )


def _shipped_rows(count: int, _seed: int, *, name: str) -> list[Row]:
    """The first rows of a JSONL file beside this one."""
    return [json.loads(line) for line in _shipped_text(f"{name}.jsonl").splitlines()][:count]


def _shipped_text(file: str) -> str:
    return resources.files("lmsmith.evaluation.tasks").joinpath(file).read_text("utf-8")


PUNCTUATION = " .,!/?"
"""Characters that random insertion puts between letters."""

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip


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
    return tuple(_shipped_text("words.txt").split())


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
    "2d_plus", "2d_minus", "3d_plus", "3d_minus", "4d_plus", "4d_minus", "5d_plus", "5d_minus",
    "2d_times", "1d_composite",
)  # fmt: skip

_SHIPPED = ("asks_for_harm", "looks_harmful", "beginnings")

GENERATORS: Mapping[str, Callable[[int, int], list[Row]]] = {
    **{f"arithmetic_{k}": functools.partial(arithmetic_rows, kind=k) for k in ARITHMETIC},
    **{f"scramble_{k}": functools.partial(scramble_rows, kind=k) for k in SCRAMBLES},
    "hindsight": hindsight_rows,
    **{name: functools.partial(_shipped_rows, name=name) for name in _SHIPPED},
}
"""Name → items from (count, seed)."""
