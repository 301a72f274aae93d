"""What is read of a database, by hand and beside what is exported."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from lmsmith.core.files import write_jsonl
from lmsmith.corpus.judgements import Judgement, read_judgements
from lmsmith.feedback import collect as collect_module
from lmsmith.feedback.collect import collect
from lmsmith.feedback.export import export
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store


def talk(store: Store, who: str, asked: str, answers: list[str]) -> list[int]:
    """A conversation of one question: the ids of the question and the answers."""
    name = store.begin(who).id
    first = store.add_message(who, name, None, "user", asked).id
    return [
        first,
        *(store.add_message(who, name, first, "assistant", a, model="m@1").id for a in answers),
    ]


def test_everything_is_read_with_who_asked_and_who_judged(store: Store, tmp_path: Path) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob", "labeler").id
    asked, one, two = talk(store, ann, "Hello?", ["one", "two"])
    store.compare(ann, one, two, "right")
    store.rate(ann, one, -1)
    store.improve(ann, two, "three")
    queue = Queue(store)
    queue.add(
        "ranking",
        [{"role": "user", "content": "Hello?"}],
        ["x", "y"],
        message=asked,
        models=["m@1", "m@2"],
    )
    queue.add(
        "ranking", [{"role": "user", "content": "gold"}], ["x", "y", "z"], gold={"ranks": [1, 2, 2]}
    )
    queue.add("ranking", [{"role": "user", "content": "more"}], ["x", "y"], gold={"ranks": [1, 2]})
    for _ in range(3):
        held = queue.next(bob)
        assert held is not None
        assignment, task = held
        ranks = ([1, 2, 2] if task.gold is None else [1, 1, 2])[: len(task.responses)]
        queue.submit(bob, assignment.id, {"ranks": [ranks[place] for place in assignment.shown]})
    row = {"prompt": "far", "responses": ["p", "q"], "ranks": [2, 1], "labeler": "Bob"}
    nobodys = {"prompt": "away", "responses": ["p", "q"], "ranks": [2, 1]}
    write_jsonl(tmp_path / "file.jsonl", [row, nobodys])
    import_file(store, tmp_path / "file.jsonl", person="import")
    found = collect(store)
    by_kind = {each.kind: each for each in found.judgements if not each.id.startswith("labelled")}
    assert sorted(each.kind for each in found.judgements) == [
        "better_answer", "comparison", "prompt", "ranking", "ranking", "ranking", "thumb",
    ]  # fmt: skip
    comparison = by_kind["comparison"]
    assert (comparison.ranks, comparison.models) == ([2, 1], ["m@1", "m@1"])
    assert comparison.prompt == [{"role": "user", "content": "Hello?"}]
    assert (by_kind["thumb"].ranks, by_kind["thumb"].responses) == ([2], ["one"])
    assert by_kind["better_answer"].responses == ["three", "two"]
    assert all(each.asker == ann for each in found.judgements if each.kind != "ranking")
    (labelled,) = (each for each in found.judgements if each.id.startswith("labelled"))
    assert (labelled.person, labelled.asker, labelled.ranks) == (bob, ann, [1, 2])
    assert by_kind["ranking"].asker == ""
    imported = [each.person for each in found.judgements if each.id.startswith("ranking-")]
    assert imported == [bob, ""]
    # Gold says x before y and z; the labeler tied x with y, twice, and put x before z.
    assert found.reliability == {bob: (2.0, 3.0)}
    assert (found.regenerations, found.edits) == (1, 0)
    assert found.names[ann] == "Ann"
    export(store, tmp_path)
    exported = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    ours = {each.id: (each.responses, each.ranks) for each in found.judgements}
    assert len(exported) == 5
    for row in exported:
        assert ours[row["id"]] == (row["responses"], row["ranks"])


def test_exported_files_name_the_people_whom_the_database_names(
    store: Store, tmp_path: Path
) -> None:
    """So that a person who is excluded is excluded of files too."""
    ann, bob = store.person("Ann").id, store.person("Bob", "labeler").id
    asked, one, two = talk(store, ann, "Hello?", ["one", "two"])
    store.compare(ann, one, two, "right")
    store.rate(ann, one, -1)
    store.improve(ann, two, "three")
    queue = Queue(store)
    queue.add("demonstration", [{"role": "user", "content": "Hello?"}], message=asked)
    queue.add("ranking", [{"role": "user", "content": "Hello?"}], ["x", "y"], message=asked)
    for _ in range(2):
        held = queue.next(bob)
        assert held is not None
        assignment, task = held
        said = {"content": "hi"} if task.kind == "demonstration" else {"ranks": [1, 2]}
        queue.submit(bob, assignment.id, said)
    far = {"prompt": "far", "labeler": "Bob", "demonstration": "p"}
    nobodys = [
        {"prompt": "away", "responses": ["p", "q"], "ranks": [2, 1]},
        {"prompt": "away", "demonstration": "p"},
    ]
    write_jsonl(tmp_path / "file.jsonl", [far, *nobodys])
    import_file(store, tmp_path / "file.jsonl", person="import")
    export(store, tmp_path / "out")

    def people(judgements: Iterable[Judgement]) -> set[tuple[str, str, str, str]]:
        return {
            (each.prompt[-1]["content"], each.responses[0], each.person, each.asker)
            for each in judgements
            if each.kind != "prompt"
        }

    found = people(read_judgements([str(tmp_path / "out")]))
    assert found == people(collect(store).judgements)
    assert ("Hello?", "hi", bob, ann) in found
    assert {("far", "p", bob, ""), ("away", "p", "", "")} <= found


def test_the_last_prompt_of_a_branch_stands_for_those_before(store: Store) -> None:
    ann = store.person("Ann").id
    _, answer = talk(store, ann, "one", ["a"])
    name = store.path(ann, answer)[0].conversation_id
    for text in ("two", "two again"):
        store.add_message(ann, name, answer, "user", text)
    found = collect(store)
    assert [[m["content"] for m in each.prompt] for each in found.judgements] == [
        ["one", "a", "two"],
        ["one", "a", "two again"],
    ]
    assert (found.regenerations, found.edits) == (0, 1)
    store.delete_person(ann)
    assert collect(store).judgements == []


def test_imported_conversations_are_nobodys(store: Store, tmp_path: Path) -> None:
    """The importer asked nothing: all that is imported would else stand on one side."""
    talks = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(3)]
    write_jsonl(tmp_path / "talks.jsonl", talks)
    import_file(store, tmp_path / "talks.jsonl", person="import")
    assert {each.asker for each in collect(store).judgements} == {""}


def test_a_server_goes_on_writing_while_it_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = store.person("Ann").id
    _, one, two = talk(store, ann, "Hello?", ["one", "two"])
    store.rate(ann, one, 1)
    messages = collect_module.Paths

    def then_more_is_said(session: Session, importer: str | None) -> Any:
        found = messages(session, importer)
        _, three, four = talk(store, ann, "Again?", ["three", "four"])
        store.compare(ann, three, four, "left")
        store.compare(ann, one, two, "right")
        store.improve(ann, three, "better")
        store.rate(ann, four, -1)
        return found

    monkeypatch.setattr(collect_module, "Paths", then_more_is_said)
    found = collect(store).judgements
    assert sorted(each.kind for each in found) == ["comparison", "prompt", "thumb"]
    assert {each.prompt[0]["content"] for each in found} == {"Hello?"}
    monkeypatch.undo()
    kinds = sorted(each.kind for each in collect(store).judgements)
    assert kinds == ["better_answer", *["comparison"] * 2, *["prompt"] * 2, *["thumb"] * 2]


def test_what_is_said_twice_in_a_row_is_one_turn(store: Store) -> None:
    """Models read it so, and recipes too."""
    ann = store.person("Ann").id
    name = store.begin(ann).id
    first = store.add_message(ann, name, None, "user", "one").id
    second = store.add_message(ann, name, first, "user", "two").id
    answer = store.add_message(ann, name, second, "assistant", "a", model="m@1").id
    store.rate(ann, answer, 1)
    found = collect(store).judgements
    assert [each.kind for each in found] == ["thumb", "prompt"]
    assert [each.prompt for each in found] == [[{"role": "user", "content": "one\n\ntwo"}]] * 2
