"""Cleaning leaves what people wrote; the key ignores how they wrote it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.corpus.cleaning import clean_text, text_key


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
