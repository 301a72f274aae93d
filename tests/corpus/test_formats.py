"""Formats of conversations and rankings that other programs write."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.corpus.formats import IrregularPair, best_path, messages_of, read_pair, tree_rankings
from lmsmith.corpus.messages import validate_messages
from lmsmith.corpus.rows import read_conversations, read_rankings


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


HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}
EMPTY = {"role": "assistant", "content": " "}


def transcript(*turns: str) -> str:
    """Turns that begin with H or A as hh-rlhf writes them."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[1:]}" for turn in turns)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HELLO], "chosen": "hi", "rejected": "bye"},
        {"prompt": "hello", "chosen": "hi", "rejected": "bye"},
        {"chosen": [HELLO, HI], "rejected": [HELLO, BYE]},
        {"prompt": "hello", "chosen": [HELLO, HI], "rejected": [HELLO, BYE]},
        {"prompt": [HELLO], "chosen": [HI], "rejected": [BYE]},
        {"chosen": transcript("Hhello", "Ahi"), "rejected": transcript("Hhello", "Abye")},
        {"chosen": transcript("Hhello", "A", "Ahi"), "rejected": transcript("Hhello", "Abye")},
    ],
)
def test_a_pair_is_a_ranking_of_two(row: dict[str, object]) -> None:
    assert read_pair(row, "here") == ([HELLO], ["hi", "bye"], [1, 2])


def test_turns_of_one_speaker_are_one_message() -> None:
    before = ("Ha", "Hb", "Ac", "H d\n\ne ")
    row = {"chosen": transcript(*before, "Ax", "Ay"), "rejected": transcript(*before, "Az")}
    prompt, responses, _ = read_pair(row, "here")
    assert [message["content"] for message in prompt] == ["a\nb", "c", "d\n\ne"]
    assert responses == ["x\ny", "z"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        (("Ha", "A"), ("Ha", "Ab"), "a message is empty"),
        (("Ha", "Ab"), ("Ha", "A "), "a message is empty"),
        (("H", "Ab"), ("H", "Ac"), "a message is empty"),
        (("Ha", "A", "Hb", "Ac"), ("Ha", "A", "Hb", "Ad"), "a message is empty"),
        (("Ha", "Ab"), ("Ha", "Ab "), "are the same"),
        (("Ha", "Ab"), ("Hc", "Ab"), "differ before their last message"),
        (("Ha", "Ab"), ("Ha", "Ab", "Hc", "Ad"), "differ before their last message"),
        (("Ha", "Ab"), ("Ha",), "must end with the assistant's message"),
        (("Ha", "Ab", "Hc"), ("Ha", "Ab", "Hd"), "must end with the assistant's message"),
        (("Ab",), ("Ac",), "there is no prompt"),
    ],
)
def test_what_is_no_choice_between_two_replies_is_irregular(
    chosen: tuple[str, ...], rejected: tuple[str, ...], problem: str
) -> None:
    row = {"chosen": transcript(*chosen), "rejected": transcript(*rejected)}
    with pytest.raises(IrregularPair, match=f"here: .*{problem}") as caught:
        read_pair(row, "here")
    assert caught.value.flaw


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HELLO], "chosen": "", "rejected": "bye"},
        {"prompt": "", "chosen": "hi", "rejected": "bye"},
        {"prompt": [HELLO], "chosen": [EMPTY], "rejected": [BYE]},
        {"prompt": "hello", "chosen": "hi", "rejected": "hi "},
        {"chosen": [HELLO, HI], "rejected": [HELLO]},
    ],
)
def test_other_forms_have_the_same_flaws(row: dict[str, object]) -> None:
    with pytest.raises(IrregularPair):
        read_pair(row, "here")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "hi"},
        {"chosen": "hi", "rejected": "bye"},
        {"chosen": [HELLO, HI], "rejected": 3},
        {"chosen": [{"role": "bot", "content": "hi"}], "rejected": [HI]},
        {"prompt": [HI], "chosen": "hi", "rejected": "bye"},
    ],
)
def test_a_wrong_form_is_an_error_and_not_irregular(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match="here") as caught:
        read_pair(row, "here")
    assert not isinstance(caught.value, IrregularPair)


def test_real_pairs_are_read() -> None:
    path = Path(__file__).parents[3] / "shared/data/preferences/hh_harmless_base.test.jsonl.gz"
    if not path.is_file():
        pytest.skip("the hh-rlhf pairs are not here: ../shared/data/preferences")
    left_out: list[IrregularPair] = []
    rankings = list(read_rankings(path, left_out))
    assert len(rankings) == 2308
    assert Counter(irregular.flaw for irregular in left_out) == {"with an empty message": 4}
    assert all(ranking.prompt[-1]["role"] == "user" for ranking in rankings)


def post(text: str, *replies: dict[str, Any], rank: int | None = None, **more: Any) -> Any:
    """A message named by its text; whose turn it is, `row` says."""
    return {"message_id": text, "text": text, "rank": rank, "replies": list(replies), **more}


def row(root: dict[str, Any]) -> dict[str, object]:
    level, role = [root], "prompter"
    while level:
        for message in level:
            message.setdefault("role", role)
        role = "assistant" if role == "prompter" else "prompter"
        level = [reply for message in level for reply in message["replies"]]
    return {"message_tree_id": "tree", "tree_state": "ready_for_export", "prompt": root}


TREE = post(
    "q",
    post("good", post("more?", post("yes", rank=1), post("no", rank=0)), rank=1),
    post("best", post("and?", post("only one", rank=0)), post("thanks"), rank=0),
    post(
        "unranked",
        post("so?", post("a", rank=0), post("b", rank=2), post("c", rank=1)),
    ),
    post(
        "gone",
        post("hidden?", post("x", rank=0), post("y", rank=1)),
        rank=2,
        deleted=True,
    ),
    post(" ", rank=3),
)


def test_every_message_with_two_ranked_replies_is_a_ranking() -> None:
    found = dict(tree_rankings(row(copy.deepcopy(TREE)), "here"))
    texts = {
        name: ([message["content"] for message in prompt], responses, ranks)
        for name, (prompt, responses, ranks) in found.items()
    }
    assert texts == {
        "q": (["q"], ["good", "best"], [2, 1]),
        "more?": (["q", "good", "more?"], ["yes", "no"], [2, 1]),
        "so?": (["q", "unranked", "so?"], ["a", "b", "c"], [1, 3, 2]),
    }
    for prompt, _, _ in found.values():
        roles = [message["role"] for message in prompt]
        assert roles == ["user", "assistant", "user"][: len(roles)]


def test_the_best_path_ends_with_the_assistant() -> None:
    name, messages = best_path(row(copy.deepcopy(TREE)), "here") or ("", [])
    assert name == "tree"
    assert [message["content"] for message in messages] == ["q", "best", "and?", "only one"]
    short = row(post("q", post("a", post("thanks")), post("b")))
    assert [m["content"] for m in (best_path(short, "here") or ("", []))[1]] == ["q", "a"]
    ranked = row(post("q", post("a"), post("b", rank=2), post("c", rank=1)))
    assert [m["content"] for m in (best_path(ranked, "here") or ("", []))[1]] == ["q", "c"]
    assert best_path(row(post("q")), "here") is None
    assert best_path(row(post("q", post("a"), deleted=True)), "here") is None


def test_without_ids_they_are_made_of_the_words() -> None:
    def bare(first: str) -> dict[str, object]:
        tree = row(post(first, post("a", rank=0), post("b", rank=1)))
        tree["message_tree_id"] = None
        del tree["prompt"]["message_id"]  # type: ignore[attr-defined]
        return tree

    names = [next(tree_rankings(bare(first), "here"))[0] for first in ("q", "q", "r")]
    assert names[0] == names[1] != names[2]
    paths = [(best_path(bare(first), "here") or ("", []))[0] for first in ("q", "q", "r")]
    assert paths[0] == paths[1] != paths[2]


@given(st.integers(0, 10**9))
def test_random_trees_agree_with_a_plain_recursion(seed: int) -> None:
    source = random.Random(seed)
    numbers = iter(range(10**6))

    def grow(depth: int) -> Any:
        replies = [grow(depth - 1) for _ in range(source.randint(0, 3))] if depth else []
        ranks = source.sample(range(5), len(replies))
        for reply, rank in zip(replies, ranks, strict=True):
            reply["rank"] = source.choice([rank, None])
        return post(str(next(numbers)), *replies, deleted=source.random() < 0.1)

    def by_hand(message: Any, path: list[str], found: dict[str, Any]) -> None:
        if message["deleted"]:
            return
        path = [*path, message["text"]]
        here = [r for r in message["replies"] if not r["deleted"] and r["rank"] is not None]
        if len(path) % 2 and len(here) > 1:
            found[message["text"]] = path, {r["text"]: r["rank"] + 1 for r in here}
        for reply in message["replies"]:
            by_hand(reply, path, found)

    root = grow(source.randint(0, 5))
    expected: dict[str, Any] = {}
    by_hand(root, [], expected)
    found = {}
    for name, (prompt, responses, ranks) in tree_rankings(row(root), "here"):
        assert validate_messages(prompt, "here")[-1]["role"] == "user"
        texts = [message["content"] for message in prompt]
        found[name] = texts, dict(zip(responses, ranks, strict=True))
    assert found == expected
    assert list(found) == list(expected), "in the order of the tree"


def test_a_tree_may_be_deep() -> None:
    root = tip = post("0")
    for number in range(1, 3001):
        tip["replies"] = [post(str(number), rank=0)]
        tip = tip["replies"][0]
    tip["replies"] = [post("a", rank=0), post("b", rank=1)]
    ((_, (prompt, _, _)),) = tree_rankings(row(root), "here")
    assert len(prompt) == 3001
    assert len((best_path(row(root), "here") or ("", []))[1]) == 3002


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": 3}, "'text' must be text, not a number"),
        ({"role": "system"}, "the role 'system' in a tree; expected prompter or assistant"),
        ({"role": "prompter"}, "two messages in a row by the user in this tree"),
        ({"rank": -1}, "'rank' in a tree must be a whole number from 0"),
        ({"rank": True}, "'rank' in a tree must be a whole number from 0"),
        ({"replies": "none"}, "'replies' must be a list, not text"),
        ({"message_id": 4}, "'message_id' must be text, not a number"),
    ],
)
def test_what_is_no_such_tree_is_said(change: dict[str, object], problem: str) -> None:
    tree = row(post("q", post("a", rank=0), post("b", rank=1)))
    tree["prompt"]["replies"][1].update(change)  # type: ignore[index]
    with pytest.raises(UserError, match=f"here: .*{problem}"):
        list(tree_rankings(tree, "here"))
    with pytest.raises(UserError, match=problem):
        best_path(tree, "here")


def test_broken_rows_name_what_is_missing() -> None:
    with pytest.raises(UserError, match="here: no 'prompt' in this row"):
        list(tree_rankings({"message_tree_id": "t"}, "here"))
    with pytest.raises(UserError, match="must be an object, not text"):
        list(tree_rankings({"message_tree_id": "t", "prompt": "why?"}, "here"))
    with pytest.raises(UserError, match="a message of the tree: no 'role'"):
        list(tree_rankings({"message_tree_id": "t", "prompt": {"text": "why?"}}, "here"))


def test_real_trees_are_read() -> None:
    path = Path(__file__).parents[3] / "shared/data/preferences/oasst_en_100_tree.jsonl"
    if not path.is_file():
        pytest.skip("Open Assistant's trees are not here: ../shared/data/preferences")
    rankings = list(read_rankings(path))
    assert len(rankings) == len({ranking.id for ranking in rankings}) == 212
    assert all(min(ranking.ranks) == 1 for ranking in rankings)
    conversations = list(read_conversations(path))
    assert len(conversations) == 100
    assert all(talk.messages[-1]["role"] == "assistant" for talk in conversations)
