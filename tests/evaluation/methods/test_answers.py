"""Answers are read and compared by rules that a reader can follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.methods.answers import (
    NORMALISERS,
    exact_match,
    extract_answer,
    normalise_number,
    normalise_squad,
    vote,
    word_f1,
)
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import AnswerSpec


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a man, an apple and the theatre", "man apple and theatre"),
        ("U.S.", "us"),
        ("", ""),
    ],
)
def test_squads_normalisation(text: str, normal: str) -> None:
    assert normalise_squad(text) == normal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,234.50", "1234.5"),
        ("18.", "18"),
        ("18.0 eggs", "18"),
        ("minus: -7", "-7"),
        (".5", "0.5"),
        ("none", ""),
    ],
)
def test_numbers_are_compared_as_numbers(text: str, number: str) -> None:
    assert normalise_number(text) == number


def test_exact_match_takes_any_right_answer_and_never_nothing() -> None:
    squad = NORMALISERS["squad"]
    assert exact_match("the onion.", ["Leek", "Onion"], squad) == 1.0
    assert exact_match("onions", ["Onion"], squad) == 0.0
    assert exact_match("the", ["a"], squad) == 0.0


def test_f1_is_that_of_the_papers_example() -> None:
    # 2 words in common, 3 given, 2 right: 2 · 2 / 5
    assert word_f1("a big red dog", ["the red dog", "cat"]) == pytest.approx(4 / 5)
    assert word_f1("dog dog", ["dog"]) == pytest.approx(2 / 3)
    assert word_f1("cow", ["dog"]) == 0.0


WORDS = st.lists(st.sampled_from(["red", "dog", "cat", "sea"]), max_size=5).map(" ".join)


@given(WORDS, WORDS)
def test_f1_is_symmetric_and_one_for_the_same_words(one: str, other: str) -> None:
    assert word_f1(one, [other]) == pytest.approx(word_f1(other, [one]))
    assert word_f1(one, [one]) == (1.0 if one else 0.0)


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("gsm8k", " 9 + 9 is 18. The answer is $1,018.", "1,018"),
        ("gsm8k", " The answer is 3. No: the answer is -4 eggs.", "-4"),
        ("gsm8k", " It is 18.", ""),
        ("gsm8k_zero", " 18 of 20 eggs.", "18"),
        ("coin_flip", " No, it is not. Yes.", "No"),
        ("triviaqa", " Onion", "Onion"),
    ],
)
def test_shipped_rules_of_extraction(task: str, text: str, answer: str) -> None:
    assert extract_answer(text, find_tasks([task])[0].answer) == answer


def test_the_first_or_the_last_match_is_taken() -> None:
    assert extract_answer("1 2 3", AnswerSpec(extract=r"(\d)", take="first")) == "1"
    assert extract_answer("1 2 3", AnswerSpec(extract=r"(\d)", take="last")) == "3"


def test_a_vote_sums_over_ways_and_leaves_out_what_was_not_read() -> None:
    number = NORMALISERS["number"]
    assert vote(["7", "", "", "", "18", "18.0"], number) == "18"
    assert vote(["5", "4", "4", "5"], number) == "5"
    assert vote(["", "none"], number) == ""
