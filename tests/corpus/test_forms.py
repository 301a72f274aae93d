"""Conversations in the forms that others write become messages; what is left out is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.forms import messages_of
from lmsmith.corpus.rows import read_conversations


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [said("user", "hello"), said("assistant", "hi")]


def node(
    parent: str | None, role: str, *parts: object, kind: str = "text", **others: object
) -> dict[str, object]:
    content = {"content_type": kind, "parts": list(parts)}
    return {"parent": parent, "message": {"author": {"role": role}, "content": content, **others}}


EXPORTED: dict[str, object] = {
    "title": "A talk",
    "conversation_id": "talk-1",
    "current_node": "g",
    "mapping": {
        "root": {"parent": None, "message": None},
        "a": node("root", "system", ""),
        "b": node("a", "user", {"asset_pointer": "file"}, "hello", kind="multimodal_text"),
        "other": node("b", "assistant", "another answer"),
        "c": node("b", "assistant", "search()", recipient="browser"),
        "d": node("c", "tool", "found"),
        "e": node("d", "assistant", "I think", kind="thoughts"),
        "f": node("e", "assistant", "hi"),
        "g": node("f", "assistant", "there"),
    },
}


@pytest.mark.parametrize(
    ("row", "messages", "left_out"),
    [
        ({"messages": ASKED}, ASKED, {}),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hello"},
                    {"from": "gpt", "value": "hi"},
                ]
            },
            ASKED,
            {},
        ),
        (
            {
                "system": "Be kind.",
                "conversations": [
                    {"from": "human", "value": "hello"},
                    {"from": "function_call", "value": "search()"},
                    {"from": "gpt", "value": None},
                    {"from": "gpt", "value": "h"},
                    {"from": "gpt", "value": "i"},
                ],
            },
            [said("system", "Be kind."), said("user", "hello"), said("assistant", "h\ni")],
            {"messages to or from tools": 1, "empty messages": 1},
        ),
        ({"conversations": [said("User", "hello"), said("assistant", "hi")]}, ASKED, {}),
        ({"conversations": []}, None, {"conversations without a message": 1}),
        ({"instruction": "hello", "input": "", "output": "hi"}, ASKED, {}),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["hello", "hi"]]},
            [*ASKED, said("user", "Add.\n\n1 2"), said("assistant", "3")],
            {},
        ),
        (
            EXPORTED,
            [said("user", "hello"), said("assistant", "hi\nthere")],
            {
                "messages in branches that are not the last one shown": 1,
                "images and other parts that are no text": 1,
                "messages to or from tools": 2,
                "hidden messages": 1,
            },
        ),
        ({**EXPORTED, "current_node": None}, None, None),
    ],
)
def test_each_form_becomes_messages(
    row: dict[str, object],
    messages: list[dict[str, str]] | None,
    left_out: dict[str, int] | None,
) -> None:
    counts = Counter[str]()
    found = messages_of(row, "here", counts)
    if left_out is None:  # without the last node, the path ends at the last leaf
        assert found == [said("user", "hello"), said("assistant", "hi\nthere")]
    else:
        assert (found, +counts) == (messages, Counter(left_out))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"talk": []}, "no 'messages' in this row; its keys are: 'talk'\n  a conversation has"),
        ({"conversations": "a"}, "'conversations' must be a list, not text"),
        ({"conversations": [{"from": "Ann", "value": "a"}]}, "message 1 is from 'Ann'; expected"),
        ({"instruction": "a"}, "no 'output' in this row"),
        ({"instruction": "a", "output": 1}, "'output' must be text, not a number"),
        ({"mapping": []}, "'mapping' must be an object"),
        (
            {"mapping": {"a": {"parent": ["b"]}}},
            "'mapping' must be an object of objects, each with",
        ),
        (
            {"mapping": {"a": {"message": {"author": "me", "content": 1}}}},
            "'author' and 'content' must be",
        ),
    ],
)
def test_a_row_of_another_form_says_what_was_expected(row: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        messages_of(row, "here", Counter())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("content", None),
        ("content", {"content_type": "text", "parts": None}),
        ("content", {"content_type": "text"}),
    ],
)
def test_an_empty_message_of_an_export_does_not_stop_it(place: str, value: object) -> None:
    mapping = {
        "a": node(None, "user", "hello"),
        "b": {"parent": "a", "message": {"author": {"role": "user"}, place: value}},
        "c": node("b", "assistant", "hi", recipient=None),
    }
    left_out: Counter[str] = Counter()
    assert messages_of({"mapping": mapping, "current_node": "c"}, "x", left_out) == ASKED
    assert +left_out == {"empty messages": 1}


def test_a_role_of_chatgpts_own_does_not_stop_an_export() -> None:
    mapping = {
        "a": node(None, "user", "hello"),
        "b": node("a", "critic", "no"),
        "c": node("b", "assistant", "hi"),
    }
    left_out: Counter[str] = Counter()
    assert messages_of({"mapping": mapping, "current_node": "c"}, "x", left_out) == ASKED
    assert +left_out == {"messages to or from tools": 1}


@pytest.mark.parametrize("row", [{"current_node": ["b"]}, {"current_node": 3}, {}])
def test_an_export_whose_last_node_is_not_named_is_read_to_its_end(row: dict[str, object]) -> None:
    mapping = {"a": node(None, "user", "hello"), "b": node("a", "assistant", "hi")}
    assert messages_of({"mapping": mapping, **row}, "x", Counter()) == ASKED


def test_a_message_of_an_export_that_is_no_object_is_named() -> None:
    with pytest.raises(UserError, match="x, message a must be an object, not text"):
        messages_of({"mapping": {"a": {"parent": None, "message": "hello"}}}, "x", Counter())


def test_a_circle_in_an_export_ends() -> None:
    nodes = {"a": {**node("b", "user", "hello")}, "b": {**node("a", "assistant", "hi")}}
    assert messages_of({"mapping": nodes, "current_node": "b"}, "here", Counter()) == ASKED


@pytest.mark.parametrize("current", ["gone", ["b"], None])
def test_where_no_message_was_shown_last_the_tree_is_read_to_its_end(current: object) -> None:
    nodes = {"a": node(None, "user", "hello"), "b": node("a", "assistant", "hi")}
    assert messages_of({"mapping": nodes, "current_node": current}, "here", Counter()) == ASKED


@pytest.mark.parametrize("name", ["conversations.json", "lines.JSON", "one.json", "rows.jsonl"])
def test_a_list_an_object_or_lines_are_read(tmp_path: Path, name: str) -> None:
    rows = [EXPORTED, {"instruction": "hello", "output": "hi"}]
    text = {
        "conversations.json": json.dumps(rows, indent=1),
        "one.json": json.dumps(EXPORTED, indent=1),
    }.get(name, "\n".join(map(json.dumps, rows)))
    (tmp_path / name).write_text(text)
    found = list(read_conversations(tmp_path / name))
    assert [conversation.id for conversation in found][:1] == ["talk-1"]
    assert [len(conversation.messages) for conversation in found] == [2] * (
        1 if name == "one.json" else 2
    )


def test_a_list_names_the_item_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([EXPORTED, 3]))
    with pytest.raises(UserError, match=r"a.json, item 2: expected a JSON object, found a number"):
        list(read_conversations(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[{")
    with pytest.raises(UserError, match=r"a.json: not valid JSON"):
        list(read_conversations(tmp_path / "a.json"))
