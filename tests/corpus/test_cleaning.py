"""Cleaning of texts and conversations."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.corpus.cleaning import clean_messages, clean_text, other_side, text_key
from lmsmith.corpus.rows import Conversation


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\r\nb\rc\u2028d \n", "a\nb\nc\nd"),
        ("a\vb\fc\x85d\u2029e\x1cf", "a\nb\nc\nd\ne\nf"),
        ("a\x00\x1b[0m\tb\x7f\ufeff", "a[0m\tb"),
        ("\ud83d alone", "\ufffd alone"),
        ("👩‍👩‍👧 好", "👩‍👩‍👧 好"),
        ("e\u0301", "e\u0301"),
        (" \x00 ", ""),
    ],
)
def test_clean_text(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_unicode_form_is_the_users_choice() -> None:
    assert clean_text("e\u0301 Ａ", "NFC") == "é Ａ"
    assert clean_text("e\u0301 Ａ", "NFKC") == "é A"


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    cleaned.encode("utf-8")


def test_the_key_ignores_case_width_marks_and_space() -> None:
    assert text_key("Hello, World!") == text_key("hello world") == text_key("ＨＥＬＬＯ\n\nworld…")
    assert text_key("hello word") != text_key("hello world")
    assert text_key("你好。") == text_key("你好") != text_key("您好")
    assert text_key("😀") != text_key("😂")


def talk(*contents: str, system: str = "", first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def test_cleaning_joins_the_neighbours_of_an_empty_message_and_changes_nothing_given() -> None:
    given = talk(" a\x00", "\n", "b\r\nc", "d")
    counts: Counter[str] = Counter()
    assert clean_messages(given, "none", counts) == talk("a\nb\nc", "d")
    assert counts["dropped.empty_messages"] == 1
    assert given == talk(" a\x00", "\n", "b\r\nc", "d")


def test_the_other_side_begins_with_the_first_message_that_is_then_the_users() -> None:
    swapped = other_side(Conversation("x", talk("a", "b", "c")))
    assert swapped == Conversation("x/other-side", talk("b", "c"))
    swapped = other_side(Conversation("x", talk("a", "b", "c", first="assistant")))
    assert swapped == Conversation("x/other-side", talk("a", "b", "c"))
    assert other_side(Conversation("x", talk("a", "b"))) is None
    assert other_side(Conversation("x", talk("a", "b", "c", system="be"))) is None
