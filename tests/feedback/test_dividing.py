"""Which side of the held-out split a row is on: people's own by person, files' by their opening."""

from __future__ import annotations

from pathlib import Path

from lmsmith.core.files import read_jsonl, write_jsonl
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.feedback.export import HELD_OUT, export
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.sample import logged_prompts
from lmsmith.feedback.store import Store

SHARE = 0.5


def is_held_out(name: str) -> bool:
    return split_of(name, {HELD_OUT: SHARE}) is not None


def person(store: Store, number: int, *, held_out: bool) -> str:
    """Somebody on that side; ids are by chance."""
    while is_held_out(found := store.person(f"person {number}").id) != held_out:
        number += 1000
    return found


def question(number: int, *, held_out: bool) -> str:
    """A prompt whose opening is on that side."""
    while is_held_out(opening_key([{"role": "user", "content": f"question {number}"}])) != held_out:
        number += 1000
    return f"question {number}"


def asks(store: Store, who: str, content: str) -> None:
    """A talk of theirs that is exported."""
    talk = store.begin(who).id
    asked = store.add_message(who, talk, None, "user", content).id
    answered = store.add_message(who, talk, asked, "assistant", "so so", model="m").id
    store.improve(who, answered, f"better: {content}")


def sides(store: Store, folder: Path, source: str) -> dict[str, set[str]]:
    """What the user says first in rankings of a source → the sides on which it stands."""
    export(store, folder, held_out=SHARE)
    found: dict[str, set[str]] = {}
    for side in ("", HELD_OUT):
        for _, row in read_jsonl(folder / side / "rankings.jsonl"):
            if row["source"] == f"feedback.{source}":
                prompt: list[dict[str, str]] = row["prompt"]  # type: ignore[assignment]
                said = next(m["content"] for m in prompt if m["role"] == "user")
                found.setdefault(said, set()).add(side)
    return found


def test_a_prompt_of_a_file_is_on_one_side_whoever_ranked_it(store: Store, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for number in range(40):
        opening = {"role": "user", "content": f"question {number}"}
        later = [opening, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
        for labeler, prompt in (("Ann", [opening]), ("Bob", [opening]), (None, later)):
            row = {"prompt": prompt, "responses": ["x", "y"], "ranks": [1, 2]}
            rows.append(row if labeler is None else {**row, "labeler": labeler})
    write_jsonl(tmp_path / "rows.jsonl", rows)
    import_file(store, tmp_path / "rows.jsonl", person="import")
    found = sides(store, tmp_path / "out", "ranking")
    assert len(found) == 40
    assert all(len(side) == 1 for side in found.values())
    assert 5 < sum(side == {HELD_OUT} for side in found.values()) < 35


def test_what_came_from_a_file_follows_the_people_who_asked_it(
    store: Store, tmp_path: Path
) -> None:
    near, far = (person(store, n, held_out=side) for n, side in ((1, False), (2, True)))
    ours, theirs = question(1, held_out=True), question(2, held_out=False)
    both, nobodys = question(3, held_out=True), question(4, held_out=True)
    asks(store, near, ours)
    asks(store, far, theirs)
    for who in (near, far):
        asks(store, who, both)
    ranked = {"responses": ["x", "y"], "ranks": [1, 2]}
    rows = [{"prompt": prompt, **ranked} for prompt in (ours.upper(), theirs, both, nobodys)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    import_file(store, tmp_path / "rows.jsonl", person="import")
    assert sides(store, tmp_path / "out", "better") == {
        ours: {""}, theirs: {HELD_OUT}, both: {"", HELD_OUT},
    }  # fmt: skip
    # What two people of different sides asked stays with each of them, and by its hash here.
    assert sides(store, tmp_path / "out", "ranking") == {
        ours.upper(): {""}, theirs: {HELD_OUT}, both: {HELD_OUT}, nobodys: {HELD_OUT},
    }  # fmt: skip


def test_labels_of_imported_talks_go_by_prompt_and_of_a_persons_by_person(
    store: Store, tmp_path: Path
) -> None:
    """The name `import` is nobody: its talks are not all on one side, a person's are."""
    talks = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(30)]
    write_jsonl(tmp_path / "talks.jsonl", talks)
    import_file(store, tmp_path / "talks.jsonl", person="import")
    ann = person(store, 1, held_out=True)
    for number in range(5):
        store.add_message(ann, store.begin(ann).id, None, "user", f"own {number}")
    queue, lee = Queue(store), store.person("Lee", "labeler").id
    for asked in logged_prompts(store):
        queue.add("ranking", asked.messages, ["a", "b", "c", "d"], message=asked.message)
    while (held := queue.next(lee)) is not None:
        queue.submit(lee, held[0].id, {"ranks": [1, 2, 3, 4]})
    found = sides(store, tmp_path / "out", "labelled")
    assert {prompt: side for prompt, side in found.items() if prompt.startswith("own")} == {
        f"own {number}": {HELD_OUT} for number in range(5)
    }
    imported = [side for prompt, side in found.items() if prompt.startswith("question")]
    assert len(imported) == 30
    assert {"", HELD_OUT} == set().union(*imported)
    assert all(len(side) == 1 for side in imported)
