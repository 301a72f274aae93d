"""Labels of written answers: right, or undecided."""

from __future__ import annotations

import pytest

from lmsmith.evaluation.methods.written_label import named_label

NUMBERS, WORDS = ("1", "2"), ("yes", "no")


def read(text: str, labels: tuple[str, ...] = NUMBERS, *, is_cut: bool = False) -> str:
    """The label, or "" for none."""
    found = named_label(text, labels, is_cut=is_cut)
    assert sum(found.values()) == pytest.approx(1.0)
    return next((label for label, chance in found.items() if chance == 1.0), "")


PLAIN = [
    *["2", "2.", "**2**", "[[2]]", "(2)", "２", "Reply 2", "Response #2", "Better reply: 2"],
    *["The answer is: 2", "The better reply is 2.", "I would choose reply 2.", "2 is better!"],
    *["Reply 2 is better", "2 is better than 1", "So, the best response is reply 2"],
    "Reply 2 is more helpful and truer than Reply 1.",
    "Reply 1 is longer, but less true. Reply 2 is better.",
    *["1 has more words. Overall, 2 is better.", "2. Reply 2 is better."],
    *["2\n\nCompared with 1, it is shorter.", "2\nReply 1 is rude, and reply 2"],
]
DOUBTFUL = [
    *["", "I cannot say", "12 or 2?", "1 2", "1 and 2", "Answer 1 or 2", "1\n2", "1. 2."],
    *[
        "Compared with 1, 2 is better",
        "Compared with 2, 1 is better",
        "1, compared with 2, is worse",
    ],
    *["Not 1", "It is not 1", "Neither 1 nor 2", "Reply 1 is not better", "1 is more harmful"],
    *["1 is worse", "1 is worse than 2", "The worse reply is 1", "1 is better. 2 is better."],
    *["1. The second reply is better", "1. Reply 2 is better", "1) The second one"],
    *["Reply 1 is good, but 2 is better", "1 is better than 2 in style, but 2 is truer"],
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_answer_is_read(text: str) -> None:
    assert read(text) == "2"


@pytest.mark.parametrize("text", DOUBTFUL)
def test_an_answer_that_may_mean_another_is_none(text: str) -> None:
    assert read(text) == ""


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("No, it does not.", WORDS, "no"),
        ("Yes: the reply refuses", WORDS, "yes"),
        ("There is no doubt", WORDS, ""),
        ("Yes, and no", WORDS, ""),
        ("The reply is not good.", ("good", "not good"), "not good"),
        ("The reply is not good.", ("good", "bad"), ""),
        ("Not good: GOOD", ("good", "not good"), ""),
        ("A better reply is B", ("A", "B"), ""),
        ("a.", ("A.", "B."), "A."),
        ("x", ("x", "X"), ""),
    ],
)
def test_labels_may_be_words(text: str, labels: tuple[str, ...], label: str) -> None:
    assert read(text, labels) == label


def test_a_sentence_that_was_cut_is_not_read() -> None:
    assert read("Reply 1 is better", is_cut=True) == ""
    assert read("2\n\nReply 1 is better", is_cut=True) == "2"
