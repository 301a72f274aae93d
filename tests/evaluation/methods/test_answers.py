"""Answers are read and compared by rules that a reader can follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.methods.answers import (
    NORMALISERS,
    exact_match,
    extract_answers,
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
        ("A", "a"),
        ("The.", "the"),
        ("?!", "?!"),
        ("-5 to \u22125", "-5 to -5"),
        ("3.14, 1/2 and 1,000.", "3.14 1/2 and 1000"),
        ("北京 大学。", "北 京 大 学"),
        ("“ＡＢＣ”、１２", "abc12"),
        ("cafe\u0301", "café"),
    ],
)
def test_squads_normalisation(text: str, normal: str) -> None:
    assert normalise_squad(text) == normal


def test_exact_match_takes_any_right_answer_and_never_nothing() -> None:
    squad = NORMALISERS["squad"]
    assert exact_match("the onion.", ["Leek", "Onion"], squad) == 1.0
    assert exact_match("onions", ["Onion"], squad) == 0.0
    assert exact_match("the", ["a"], squad) == 0.0
    assert exact_match("a", ["A"], squad) == 1.0
    assert exact_match("314", ["3.14"], squad) == 0.0
    assert exact_match("", [""], squad) == 0.0


def test_f1_is_that_of_the_papers_example() -> None:
    # 2 words in common, 3 given, 2 right: 2 · 2 / 5
    assert word_f1("a big red dog", ["the red dog", "cat"]) == pytest.approx(4 / 5)
    assert word_f1("dog dog", ["dog"]) == pytest.approx(2 / 3)
    assert word_f1("cow", ["dog"]) == 0.0
    # 2 characters in common, 4 given, 2 right: 2 · 2 / 6
    assert word_f1("北京大学", ["北京。"]) == pytest.approx(2 / 3)
    assert word_f1("A", ["a"]) == 1.0


WORDS = st.lists(st.sampled_from(["red", "dog", "cat", "sea"]), max_size=5).map(" ".join)


@given(WORDS, WORDS)
def test_f1_is_symmetric_and_one_for_the_same_words(one: str, other: str) -> None:
    assert word_f1(one, [other]) == pytest.approx(word_f1(other, [one]))
    assert word_f1(one, [one]) == (1.0 if one else 0.0)


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("gsm8k", " 9 + 9 is 18. The answer is $1,018.", "1018"),
        ("gsm8k", " The answer is 3. No: the answer is -4 eggs.", "-4"),
        ("gsm8k_least_to_most", " The answer is \u2212$4.50.", "-4.5"),
        ("gsm8k", " It is 18.", ""),
        ("gsm8k_vote", " The answer is 1\u202f018. It is.", "1018"),
        ("gsm8k_zero", " 18 of 20 eggs.", "18"),
        ("multiarith", " \u22121/2 of 20 eggs.", "-0.5"),
        ("coin_flip", " No, it is not. Yes.", "no"),
        ("triviaqa", " Onion", "onion"),
    ],
)
def test_shipped_rules_of_extraction(task: str, text: str, answer: str) -> None:
    spec = find_tasks([task])[0].answer
    assert NORMALISERS[spec.normalise](*extract_answers([text], spec)) == answer


def test_the_first_or_the_last_match_is_taken() -> None:
    assert extract_answers(["1 2 3", "x"], AnswerSpec(extract=r"(\d)", take="first")) == ["1", ""]
    assert extract_answers(["1 2 3", "x"], AnswerSpec(extract=r"(\d)", take="last")) == ["3", ""]


def test_a_vote_sums_over_ways_and_leaves_out_what_was_not_read() -> None:
    number = NORMALISERS["number"]
    assert vote(["7", "", "", "", "18", "18.0"], number) == "18"
    assert vote(["5", "4", "4", "5"], number) == "5"
    assert vote(["", "none"], number) == ""
    assert vote(["A", "A", "A", "B"], NORMALISERS["squad"]) == "A"
