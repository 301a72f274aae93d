"""Lone surrogates become U+FFFD, in texts and in JSON; nothing else changes."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.text import encodable, encodable_json

_any_text = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"]), st.just("\\")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 🙂 你好", "plain 🙂 你好"),
        ("a\ud83d b", "a\ufffd b"),
        ("\ude00", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\ud83d\ude00\ude00", "\ufffd😀\ufffd"),
    ],
)
def test_encodable(text: str, expected: str) -> None:
    assert encodable(text) == expected
    assert json.loads(encodable_json(json.dumps(text))) == expected


def test_an_escaped_backslash_is_no_escape() -> None:
    assert encodable_json(r'"\\ud83d \\\ud83d"') == r'"\\ud83d \\\ufffd"'
    assert encodable_json(r'"\uD83D\uDE00 \ud83D"') == r'"\uD83D\uDE00 \ufffd"'


@given(_any_text, st.booleans())
def test_any_text_by_another_way(text: str, ascii: bool) -> None:
    pairs = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"),
        text,
    )
    expected = re.sub("[\ud800-\udfff]", "\ufffd", pairs)
    assert encodable(text) == expected
    assert json.loads(encodable_json(json.dumps(text, ensure_ascii=ascii))) == expected
