"""Generated items are right, reproducible, and of the published form."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.evaluation.tasks.generated import (
    ARITHMETIC,
    DEMONSTRATIONS,
    GENERATORS,
    PUNCTUATION,
    SCRAMBLES,
    common_words,
    hindsight_rows,
)

ASKED = re.compile(r"\n\nQ: What is (.+)\?\n\nA:")
WORDS = {"plus": "+", "minus": "-", "times": "*"}


def value(asked: str) -> int:
    """By Python's own arithmetic, of nothing but numbers, signs and parentheses."""
    for word, sign in WORDS.items():
        asked = asked.replace(word, sign)
    assert re.fullmatch(r"[\d +*()-]+", asked)
    found: int = eval(asked)
    return found


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_sums_are_right_and_of_their_size(kind: str) -> None:
    rows = GENERATORS[f"arithmetic_{kind}"](200, 3)
    assert rows == GENERATORS[f"arithmetic_{kind}"](200, 3)
    assert rows != GENERATORS[f"arithmetic_{kind}"](200, 4)
    largest = 0
    for row in rows:
        found = ASKED.fullmatch(row["context"])
        assert found
        assert row["completion"] == f" {value(found[1])}"
        largest = max([largest, *(int(n) for n in re.findall(r"\d+", found[1]))])
    assert len(str(largest)) == int(kind[0])


@pytest.mark.parametrize(
    ("file", "kind"),
    [("two_digit_addition", "2d_plus"), ("single_digit_three_ops", "1d_composite")],
)
def test_published_sums_have_the_same_form(
    public_data: Callable[[str], Path], file: str, kind: str
) -> None:
    published = public_data(f"gpt3_arithmetic/{file}.jsonl").read_text().splitlines()
    shape = re.compile(r"\d+")

    def forms(rows: list[dict[str, str]]) -> set[str]:
        return {shape.sub("1", row["context"]) for row in rows}

    ours = forms(GENERATORS[f"arithmetic_{kind}"](2000, 0))
    assert ours == forms([json.loads(line) for line in published])


@pytest.mark.parametrize("kind", SCRAMBLES)
def test_scrambles_keep_the_letters_and_change_the_word(kind: str) -> None:
    rows = GENERATORS[f"scramble_{kind}"](300, 1)
    assert len(rows) == 300
    for row in rows:
        word, scrambled = row["completion"][1:], row["context"][1:-2]
        letters = re.sub(f"[{re.escape(PUNCTUATION)}]", "", scrambled)
        assert scrambled != word
        assert Counter(letters) == Counter(word)
        kept = {"anagram_1": 1, "anagram_2": 2}.get(kind, 0)
        assert scrambled[:kept] == word[:kept]
        assert kept == 0 or scrambled[-kept:] == word[-kept:]
        if kind == "cycle":
            assert scrambled in word + word
        if kind == "reversed":
            assert scrambled == word[::-1]
        if kind == "insertion":
            assert (letters, len(scrambled)) == (word, 2 * len(word) - 1)


def test_words_are_different_ones_of_four_letters_or_more() -> None:
    words = common_words()
    assert len(set(words)) == len(words) > 600
    assert all(len(word) >= 4 and word.isalpha() and word.islower() for word in words)


BET = re.compile(
    r"a (\d+) percent chance of winning (\d+) dollars and a (\d+) percent chance of losing (\d+) "
    r"dollars\. \w+ plays, and (wins|loses) (\d+) dollars\. .*\nAnswer:(?: ([YN]))?"
)


def judged(bet: re.Match[str]) -> tuple[str, str]:
    """What the expected value says, and what the outcome says."""
    chance, gain, other, loss = (int(bet[n]) for n in (1, 2, 3, 4))
    assert chance + other == 100
    assert int(bet[6]) == (gain if bet[5] == "wins" else loss)
    expected = chance * gain - other * loss
    assert abs(expected) >= 1_000  # in hundredths of a dollar: the answer is never a close call
    return ("Y" if expected > 0 else "N"), ("Y" if bet[5] == "wins" else "N")


@pytest.mark.parametrize("seed", [0, 7, 123])
def test_outcomes_agree_in_the_examples_and_mislead_in_the_item(seed: int) -> None:
    rows = hindsight_rows(12, seed)
    for row in rows:
        shown = list(BET.finditer(row["examples"]))
        assert len(shown) == DEMONSTRATIONS
        for bet in shown:
            assert judged(bet) == (bet[7], bet[7])
        assert [bet[7] for bet in shown].count("Y") == DEMONSTRATIONS // 2
        found = BET.search(row["question"])
        assert found is not None
        by_value, by_outcome = judged(found)
        assert row["answer"] == by_value != by_outcome
    assert [row["answer"] for row in rows].count("Y") == 6
    assert hindsight_rows(12, seed) == rows
    assert hindsight_rows(12, seed + 1) != rows


def test_shipped_sets_are_in_two_languages_and_their_first_rows_are_asked_for() -> None:
    for name in ("asks_for_harm", "looks_harmful"):
        rows = GENERATORS[name](100, 0)
        assert {row["language"] for row in rows} == {"en", "zh"}
        assert len({row["prompt"] for row in rows}) == len(rows) == 18
        assert GENERATORS[name](3, 5) == rows[:3]
