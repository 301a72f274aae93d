"""A tree gives the rankings a reader would find by hand, and its best path."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import validate_messages
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.corpus.trees import best_path, tree_rankings


def node(text: str, *replies: dict[str, Any], rank: int | None = None, **more: Any) -> Any:
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


TREE = node(
    "q",
    node("good", node("more?", node("yes", rank=1), node("no", rank=0)), rank=1),
    node("best", node("and?", node("only one", rank=0)), node("thanks"), rank=0),
    node("unranked", node("so?", node("a", rank=0), node("b", rank=2), node("c", rank=1))),
    node("gone", node("hidden?", node("x", rank=0), node("y", rank=1)), rank=2, deleted=True),
    node(" ", rank=3),
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
    short = row(node("q", node("a", node("thanks")), node("b")))
    assert [m["content"] for m in (best_path(short, "here") or ("", []))[1]] == ["q", "a"]
    ranked = row(node("q", node("a"), node("b", rank=2), node("c", rank=1)))
    assert [m["content"] for m in (best_path(ranked, "here") or ("", []))[1]] == ["q", "c"]
    assert best_path(row(node("q")), "here") is None
    assert best_path(row(node("q", node("a"), deleted=True)), "here") is None


def test_without_ids_they_are_made_of_the_words() -> None:
    def bare(first: str) -> dict[str, object]:
        tree = row(node(first, node("a", rank=0), node("b", rank=1)))
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
        return node(str(next(numbers)), *replies, deleted=source.random() < 0.1)

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
    root = tip = node("0")
    for number in range(1, 3001):
        tip["replies"] = [node(str(number), rank=0)]
        tip = tip["replies"][0]
    tip["replies"] = [node("a", rank=0), node("b", rank=1)]
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
    tree = row(node("q", node("a", rank=0), node("b", rank=1)))
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
