"""A conversation from the other side, and messages that are joined where one between is empty."""

from __future__ import annotations

from collections import Counter

from lmsmith.corpus.conversations import clean_messages, other_side
from lmsmith.corpus.rows import Conversation


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
