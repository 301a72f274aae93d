"""Files of others and of the page itself are imported once, with every branch and judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from worlds import HTTP, Running, parrot, running

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus import formats
from lmsmith.feedback.imports import begun_by_user, import_file
from lmsmith.feedback.store import Store
from lmsmith.feedback.trees import Tree, import_trees, in_turn
from stores import row_counts

ASKED = [{"role": "user", "content": "tea? 你好"}, {"role": "assistant", "content": "yes"}]
MESSAGE: dict[str, Any] = {"model": "m", "settings": {"seed": 3}, "finish": "stop"}
OURS: dict[str, Any] = {
    "lmsmith": 1,
    "title": "drinks",
    "messages": [
        {"id": 4, "parent": None, **ASKED[0]},
        {"id": 7, "parent": 4, **ASKED[1], **MESSAGE, "better": "Yes!"},
        {
            "id": 9,
            "parent": 4,
            **ASKED[1],
            "rating": {"value": -1, "reasons": ["wrong"], "comment": "x"},
        },
        {"id": 12, "parent": 7, "role": "user", "content": "more"},
        {"id": 13, "parent": 12, "role": "user", "content": "and more"},
    ],
}
CHATGPT: dict[str, Any] = {
    "title": "From elsewhere",
    "current_node": "b",
    "mapping": {
        "r": {"parent": None, "message": None},
        "a": {
            "parent": "r",
            "message": {"author": {"role": "user"}, "content": {"parts": ["hello"]}},
        },
        "b": {
            "parent": "a",
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["hi"]}},
        },
        "c": {
            "parent": "a",
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["ho"]}},
        },
    },
}
SHAREGPT: dict[str, Any] = {
    "conversations": [
        {"from": "gpt", "value": "I begin"},
        {"from": "human", "value": "hello\nthere"},
        {"from": "gpt", "value": "hi"},
    ]
}
ALPACA = {"instruction": "Say yes.", "input": "", "output": "yes"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Store]]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    with running({"parrot": parrot()}, store=store) as served:
        yield served, store
    store.close()


def bring(served: Running, *rows: Any, status: int = 200) -> Any:
    body = {"name": "talks.json", "first": 5, "rows": rows}
    answer = HTTP.post(f"{served.address}/api/imports", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def shown(served: Running, conversation: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"{served.address}/api/conversations/{conversation['id']}"
    found: list[dict[str, Any]] = HTTP.get(path).json()["messages"]
    return found


def test_what_is_exported_is_imported_with_every_branch_and_judgement(
    kept: tuple[Running, Store],
) -> None:
    served, _ = kept
    (made,) = bring(served, OURS)["conversations"]
    assert made["title"] == "drinks"
    messages = shown(served, made)
    first = messages[0]["id"]
    assert [each["parent"] for each in messages[:3]] == [None, first, first]
    assert [each["content"] for each in messages] == [m["content"] for m in OURS["messages"]]
    assert {name: messages[1][name] for name in MESSAGE} == MESSAGE
    assert messages[1]["better"] == "Yes!"
    assert messages[2]["rating"] == OURS["messages"][2]["rating"]
    again = {"title": "drinks", "messages": messages}  # as the page would export it
    assert bring(served, again) == {"conversations": [], "known": 1, "left_out": {}}


def test_forms_of_others_are_imported_and_what_is_left_out_is_said(
    kept: tuple[Running, Store],
) -> None:
    served, store = kept
    found = bring(served, CHATGPT, SHAREGPT, ALPACA, ALPACA)
    titles = [each["title"] for each in found["conversations"]]
    assert titles == ["From elsewhere", "hello", "Say yes."]
    assert found["known"] == 1
    assert found["left_out"] == {
        "messages in branches that are not the last one shown": 1,
        "first messages that are the assistant's": 1,
    }
    said = [[m["content"] for m in shown(served, each)] for each in found["conversations"]]
    assert said == [["hello", "hi"], ["hello\nthere", "hi"], ["Say yes.", "yes"]]
    before = row_counts(store)
    assert bring(served, SHAREGPT, ALPACA)["known"] == 2
    assert row_counts(store) == before
    # What is deleted can be imported again.
    gone = found["conversations"][2]["id"]
    assert HTTP.delete(f"{served.address}/api/conversations/{gone}").status_code == 200
    assert len(bring(served, ALPACA)["conversations"]) == 1


def test_a_file_of_the_command_line_is_known_on_the_page(
    kept: tuple[Running, Store], tmp_path: Path
) -> None:
    served, store = kept
    row = {"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}]}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert import_file(store, tmp_path / "rows.jsonl", person="owner")["conversations"] == 1
    assert bring(served, row)["known"] == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"title": "x"}, "no 'messages'"),
        ({"messages": []}, "is empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, "king"),
        ({"messages": [{"id": 2, "parent": 1, **ASKED[0]}]}, "comes before"),
        ({"messages": [{"id": 1, **ASKED[1]}]}, "cannot follow"),
        ({"messages": [{"id": 1, "role": "user"}]}, "content"),
        ({"messages": [3]}, "must be an object"),
        ({"messages": 3}, "must be a list"),
        ({"conversations": 3}, "must be a list"),
        ({"mapping": []}, "mapping"),
    ],
)
def test_mistakes_name_the_row_and_nothing_is_added(
    kept: tuple[Running, Store], row: dict[str, Any], why: str
) -> None:
    served, store = kept
    before = row_counts(store)
    new = {"instruction": f"new {why}", "output": "x"}
    message = bring(served, new, row, status=400)["error"]["message"]
    assert message.startswith("talks.json, conversation 6")
    assert why in message
    assert row_counts(store) == before


def chain(count: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": f"m{n}"} for n in range(count)]


def _sharegpt(count: int) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": f"m{n}"} for n in range(count)]
    return {"conversations": turns}


def _chatgpt(count: int) -> dict[str, Any]:
    nodes: dict[str, Any] = {
        f"n{n}": {
            "parent": f"n{n - 1}" if n else None,
            "message": {
                "author": {"role": ("user", "assistant")[n % 2]},
                "content": {"parts": [f"m{n}"]},
            },
        }
        for n in range(count)
    }
    return {"mapping": nodes}


def _ours(count: int, wide: bool = False) -> dict[str, Any]:
    parents = [None if not n or wide else n for n in range(count)]
    roles = [{**each, "role": "user"} if wide else each for each in chain(count)]
    pairs = enumerate(zip(roles, parents, strict=True))
    messages = [
        {**each, "id": n + 1, "parent": parent, "content": f"own {n}"}
        for n, (each, parent) in pairs
    ]
    return {"messages": messages}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chain(20_001)},
        {"messages": chain(60_000)},
        _ours(20_001),
        _ours(20_001, wide=True),
        _sharegpt(20_001),
        _chatgpt(20_001),
    ],
    ids=["messages", "longer", "page", "siblings", "sharegpt", "chatgpt"],
)
def test_a_conversation_has_one_limit_whatever_brings_it(
    kept: tuple[Running, Store], tmp_path: Path, row: dict[str, Any]
) -> None:
    served, store = kept
    before = row_counts(store)
    message = bring(served, row, status=400)["error"]["message"]
    assert message.startswith("talks.json, conversation 5: ")
    assert "20,000 messages" in message
    if "id" not in row.get("messages", [{}])[0]:  # the command line reads no trees of the page
        write_jsonl(tmp_path / "rows.jsonl", [row])
        with pytest.raises(UserError, match="20,000 messages"):
            import_file(store, tmp_path / "rows.jsonl", person="owner")
    assert row_counts(store) == before


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": chain(3_000)}],
        [{"messages": [*chain(3), {"role": "assistant", "content": f"x{n}"}]} for n in range(700)],
        [_ours(3_000)],
        [_ours(3_000, wide=True)],
        [{"prompt": f"{n}?"} for n in range(3_000)],
    ],
    ids=["chain", "wide", "page", "siblings", "tasks"],
)
def test_the_work_grows_with_the_messages(
    kept: tuple[Running, Store], tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """Statements are counted; one for each level of a conversation took minutes."""
    served, store = kept
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    event.listen(store.engine, "before_cursor_execute", count)
    try:
        if "prompt" in rows[0]:
            write_jsonl(tmp_path / "rows.jsonl", rows)
            import_file(store, tmp_path / "rows.jsonl", person="owner")
        else:
            assert len(bring(served, *rows)["conversations"]) == len(rows)
    finally:
        event.remove(store.engine, "before_cursor_execute", count)
    assert statements < 60 + (len(rows) if "prompt" in rows[0] else 0), statements


@pytest.mark.parametrize("kind", ["page", "conversations", "tasks", "rankings"])
def test_others_write_during_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = Store(tmp_path / "feedback.db")
    other, written = store.person("Bob").id, 0

    def rest(seconds: float) -> None:
        nonlocal written
        store.begin(other, "between two slices")  # it would wait for ten seconds, and fail
        written += 1

    monkeypatch.setattr("lmsmith.feedback.trees.SLICE", 40)
    monkeypatch.setattr("lmsmith.feedback.trees.time.sleep", rest)
    rows: list[dict[str, Any]] = [
        {"messages": [*chain(3), {"role": "assistant", "content": f"x{n}"}]} for n in range(100)
    ]
    if kind == "tasks":
        rows = [{"prompt": f"{n}?"} for n in range(200)]
    if kind == "rankings":
        rows = [{"prompt": f"{n}?", "responses": ["a", "b"], "ranks": [1, 2]} for n in range(200)]
    if kind == "page":
        trees = [Tree("x", in_turn(each["messages"]), f"origin {n}") for n, each in enumerate(rows)]
        assert len(import_trees(store, other, trees)) == len(rows)
    else:
        write_jsonl(tmp_path / "rows.jsonl", rows)
        assert import_file(store, tmp_path / "rows.jsonl", person="Ann")[kind.replace("page", "")]
    assert written >= 4
    store.close()


def test_an_import_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "feedback.db")

    def end(seconds: float) -> None:
        raise KeyboardInterrupt

    rows: list[dict[str, Any]] = [{"prompt": f"{n}?"} for n in range(100)]
    rows += [{"messages": [{"role": "user", "content": "same"}]}] * 50
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with monkeypatch.context() as patched:
        patched.setattr("lmsmith.feedback.trees.SLICE", 30)
        patched.setattr("lmsmith.feedback.trees.time.sleep", end)
        with pytest.raises(KeyboardInterrupt):
            import_file(store, tmp_path / "rows.jsonl", person="Ann")
    counts = import_file(store, tmp_path / "rows.jsonl", person="Ann")
    assert (counts["tasks"], counts["conversations"], counts["known"]) == (70, 50, 30)
    store.close()


def test_the_page_has_words_for_all_that_is_left_out() -> None:
    """It shows them in the reader's language, by the texts that the server counts them under."""
    counts = {
        text for name, text in vars(formats).items() if name.isupper() and isinstance(text, str)
    } - {formats.EXPECTED}
    left_out = Counter[str]()
    begun_by_user([ASKED[1], ASKED[0]], left_out)
    page = (Path(__file__).parents[2] / "web/src/chat/Sidebar.svelte").read_text("utf-8")
    assert len(counts) > 5
    assert [text for text in (*counts, *left_out) if text not in page] == []
