"""JSON is decoded unless its values would take far more memory than its text."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.json_text import FREE, decode_json, refuse_swelling, signs_outside_strings

COUNT = 2_000_000


@pytest.mark.parametrize("item", ["[]", "{}", "[1]", '{"":1}', "[[]]", '{"a":{}}'])
def test_many_small_values_are_refused(item: str) -> None:
    with pytest.raises(msgspec.DecodeError, match="MiB of memory"):
        decode_json(f"[{f'{item},' * COUNT}1]".encode())


@pytest.mark.parametrize("text", ["[], {}, [1], ", 'said \\"no\\": ', "[[[[", "\\\\"])
def test_brackets_in_strings_are_no_values(text: str) -> None:
    value = decode_json(json.dumps([text * COUNT]).encode())
    assert value == [text * COUNT]


def test_a_vocabulary_with_merges_is_read() -> None:
    """A vocabulary of the size of the largest that are published."""
    tokens = {f"Ġtoken{n}": n for n in range(260_000)}
    merges = [[f"Ġtoken{n}", "er"] for n in range(520_000)]
    text = json.dumps({"vocab": tokens, "merges": merges}, ensure_ascii=False)
    refuse_swelling(text.encode())


@pytest.mark.parametrize("text", ['"' * 9_000_000, '"' + '\\"' * 4_000_000, '"\\' * 4_000_000])
def test_strings_without_end_are_read_once(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_json(text.encode())


@given(st.lists(st.text() | st.sampled_from(["[{,:", "\\", '"', '\\"[']), max_size=5))
def test_signs_in_strings_are_not_counted(texts: list[str]) -> None:
    found = signs_outside_strings(json.dumps({"a": texts, "b": [{}]}).encode())
    commas = 1 + max(0, len(texts) - 1)
    assert found == {b"[": 2, b"{": 2, b",": commas, b":": 2, b'"': 4 + 2 * len(texts)}


def test_a_small_text_may_swell() -> None:
    assert decode_json(b"[" + b"[]," * 100_000 + b"1]")
    assert FREE > 72 * 100_000
