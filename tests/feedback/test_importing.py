"""Files into the database: tasks once, rankings by their labelers, and mistakes named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.feedback.importing import import_file
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.statistics import statistics_of
from lmsmith.feedback.store import Store

ROWS: list[dict[str, object]] = [
    {"prompt": "write"},
    {"prompt": "rate", "responses": ["a"], "gold": {"score": 2, "flags": []}},
    {"prompt": "rank", "responses": ["a", "b", "c", "d"], "models": ["m"] * 4, "overlap": 3},
    {"prompt": "ranked", "responses": ["a", "b"], "ranks": [2, 1], "labeler": "Lee"},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "feedback.db")
    yield made
    made.close()


def test_each_row_finds_its_place(store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    counts = import_file(store, tmp_path / "rows.jsonl", person="Ann", overlap=2)
    assert counts == {"tasks": 3, "rankings": 1, "conversations": 1, "known": 0}
    tasks = statistics_of(store)["tasks"]
    assert tasks["rating"] == {"tasks": 0, "complete": 0, "gold": 1}
    assert tasks["ranking"] == {"tasks": 1, "complete": 0, "gold": 0}
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:3])
    again = import_file(store, tmp_path / "rows.jsonl", person="Ann", overlap=2)
    assert again == {"tasks": 0, "rankings": 0, "conversations": 0, "known": 3}
    assert store.counts()["rankings"] == 1
    (talk,) = store.conversations(store.person("Ann").id)
    assert [m.content for m in store.tree(store.person("Ann").id, talk.id)] == ["x", "y"]
    held = Queue(store).next(store.person("Lee").id)
    assert held is not None
    assert held[1].prompt == [{"role": "user", "content": "rate"}]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({}, "'prompt'"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x", "responses": list("abcdefghij")}, "2 to 9"),
        ({"prompt": "x", "responses": "a"}, "list of texts"),
        ({"prompt": "x", "responses": ["a"], "kind": "ranking"}, "2 to 9"),
        ({"prompt": "x", "kind": "essay"}, "kind"),
        ({"prompt": "x", "responses": ["a"], "gold": {"score": 9}}, "score"),
        ({"prompt": "x", "responses": ["a"], "gold": 3}, "gold"),
        ({"prompt": "x", "responses": ["a"], "overlap": "2"}, "overlap"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": ["1", "2"]}, "ranks"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "begins"),
    ],
)
def test_a_bad_row_keeps_all_others_out(
    store: Store, tmp_path: Path, row: dict[str, object], what: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(UserError, match=what) as error:
        import_file(store, tmp_path / "rows.jsonl", person="Ann")
    assert "rows.jsonl, line 6" in str(error.value)
    assert sum(store.counts().values()) == 0
    assert not Queue(store).progress(store.person("Lee").id)["demonstration"]["left"]
