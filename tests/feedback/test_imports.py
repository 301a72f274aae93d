"""Files into the database: tasks once, rankings by their labelers, and mistakes named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.feedback import trees
from lmsmith.feedback.collect import collect
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.statistics import statistics_of
from lmsmith.feedback.store import Store
from stores import rank, row_counts

ROWS: list[dict[str, object]] = [
    {"prompt": "write"},
    {"prompt": "rate", "responses": ["a"], "gold": {"score": 2, "flags": []}},
    {"prompt": "rank", "responses": ["a", "b", "c", "d"], "models": ["m"] * 4, "overlap": 3},
    {"prompt": "ranked", "responses": ["a", "b"], "ranks": [2, 1], "labeler": "Lee"},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
]


def test_each_row_finds_its_place(store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    counts = import_file(store, tmp_path / "rows.jsonl", person="Ann", overlap=2)
    assert counts == {
        "tasks": 3,
        "rankings": 1,
        "demonstrations": 0,
        "conversations": 1,
        "known": 0,
    }
    tasks = statistics_of(store)["tasks"]
    assert tasks["rating"] == {"tasks": 0, "complete": 0, "gold": 1}
    assert tasks["ranking"] == {"tasks": 1, "complete": 0, "gold": 0}
    before = row_counts(store)
    again = import_file(store, tmp_path / "rows.jsonl", person="Ann", overlap=2)
    assert again == {"tasks": 0, "rankings": 0, "demonstrations": 0, "conversations": 0, "known": 5}
    assert row_counts(store) == before
    (talk,) = store.conversations(store.person("Ann").id)
    assert [m.content for m in store.tree(store.person("Ann").id, talk.id)] == ["x", "y"]
    held = Queue(store).next(store.person("Lee").id)
    assert held is not None
    assert held[1].prompt == [{"role": "user", "content": "rate"}]


def test_conversations_of_others_are_imported_and_what_is_left_out_counted(
    store: Store, tmp_path: Path
) -> None:
    rows = [
        {"instruction": "x", "input": "", "output": "y"},
        {"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "z"}]},
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    left_out = Counter[str]()
    counts = import_file(store, tmp_path / "alpaca.json", person="Ann", left_out=left_out)
    assert counts == {
        "tasks": 0,
        "rankings": 0,
        "demonstrations": 0,
        "conversations": 2,
        "known": 0,
    }
    assert left_out == {"first messages that are the assistant's": 1}
    again = import_file(store, tmp_path / "alpaca.json", person="Ann")
    assert again["known"] == 2


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
        # What is seen only once the rows before it are in the database.
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1]}, "one from 1 for each"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [0, 1]}, "one from 1 for each"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1, 2], "labeler": " "}, "a name"),
        ({"prompt": "x", "responses": ["a"], "models": ["m", "n"]}, "2 models"),
        ({"prompt": "x", "overlap": 101}, "overlap"),
    ],
)
def test_a_bad_row_keeps_all_others_out(
    store: Store, tmp_path: Path, row: dict[str, object], what: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(UserError, match=what) as error:
        import_file(store, tmp_path / "rows.jsonl", person="Ann")
    assert "rows.jsonl, line 6" in str(error.value)
    assert sum(row_counts(store).values()) == 0
    assert not Queue(store).progress(store.person("Lee").id)["demonstration"]["left"]


@pytest.mark.parametrize("slices", range(4))
def test_after_an_import_that_was_killed_the_same_file_adds_the_rest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    """It is written in several transactions: those before the kill stay."""
    path, same = tmp_path / "rows.jsonl", {**ROWS[3], "labeler": "Lee"}
    written = {"prompt": "own", "demonstration": "words", "labeler": "Lee"}
    write_jsonl(path, [*ROWS, same, written, {"messages": [{"role": "user", "content": "z"}]}])
    monkeypatch.setattr(trees, "SLICE", 1)
    rested = 0

    def rest(_: float) -> None:
        nonlocal rested
        rested += 1
        if rested > slices:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(trees.time, "sleep", rest)
        with pytest.raises(KeyboardInterrupt):
            import_file(store, path, person="Ann")
    counts = import_file(store, path, person="Ann")
    before = counts.pop("known")
    assert 0 < before < 8
    assert before + sum(counts.values()) == 8
    assert import_file(store, path, person="Ann")["known"] == 8
    there = collect(store).judgements
    assert sorted(each.kind for each in there) == [
        "demonstration", "prompt", "prompt", "ranking", "ranking",
    ]  # fmt: skip


def test_only_what_is_new_of_a_longer_file_is_added(store: Store, tmp_path: Path) -> None:
    """Rows that say the same are as many as the file has: two labelers may agree."""
    ranked = {"prompt": "tea?", "responses": ["a", "b"], "ranks": [1, 2]}
    talk = {"messages": [{"role": "user", "content": "x"}]}
    path = tmp_path / "rows.jsonl"

    def new(*rows: dict[str, object]) -> tuple[int, int, int]:
        write_jsonl(path, rows)
        counts = import_file(store, path, person="import")
        return counts["rankings"], counts["conversations"], counts["known"]

    assert new(ranked, ranked, talk) == (2, 1, 0)
    assert new(ranked, ranked, talk) == (0, 0, 3)
    assert new(talk, {**ranked, "ranks": [2, 1]}, ranked, ranked, ranked, talk) == (2, 1, 3)
    assert new({**ranked, "labeler": "Lee"}) == (1, 0, 0)
    # What was deleted is new again.
    person = store.person("import").id
    for each in store.conversations(person):
        store.delete(person, each.id)
    assert new(talk) == (0, 1, 0)


def test_long_conversations_keep_their_order(store: Store, tmp_path: Path) -> None:
    talks = []
    for number in range(30):
        roles = ["user", "assistant"] * (number % 4 + 1)
        first = [{"role": "system", "content": "be kind"}] * (number % 2)
        said = [{"role": role, "content": f"{number} {n}"} for n, role in enumerate(roles)]
        talks.append({"messages": [*first, *said]})
    write_jsonl(tmp_path / "talks.jsonl", talks)
    import_file(store, tmp_path / "talks.jsonl", person="Ann")
    ann = store.person("Ann").id
    found = []
    for each in store.conversations(ann):
        path = store.path(ann, store.tree(ann, each.id)[-1].id)
        found.append([{"role": m.role, "content": m.content} for m in path])
    assert sorted(map(repr, found)) == sorted(repr(talk["messages"]) for talk in talks)


def test_what_was_imported_before_this_was_noted_is_known(tmp_path: Path) -> None:
    """A database of version 0002, with a ranking twice, is brought up to date."""
    path = tmp_path / "feedback.db"
    store = Store(path)
    lee = store.person("Lee").id
    for _ in range(2):
        rank(store, lee, [{"role": "user", "content": "tea? é"}], ["a", "b"], [2, 1])
    with store.engine.begin() as connection:
        for table in ("conversations", "rankings"):
            connection.execute(text(f"DROP INDEX ix_{table}_origin"))
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN origin"))
        connection.execute(text("ALTER TABLE people DROP COLUMN compares"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    store.close()
    store = Store(path)
    row = {"prompt": "tea? é", "responses": ["a", "b"], "ranks": [2, 1], "labeler": "Lee"}
    write_jsonl(tmp_path / "rows.jsonl", [row, row, row])
    counts = import_file(store, tmp_path / "rows.jsonl", person="Ann")
    assert (counts["rankings"], counts["known"]) == (1, 2)
    store.close()
