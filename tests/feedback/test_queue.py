"""The queue: who gets what, drafts and leases, gold, privacy, and nothing lost or left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.feedback import queue as queue_module
from lmsmith.feedback.answers import FLAGS
from lmsmith.feedback.export import export
from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import Table, now

SOURCE = str(Path(__file__).parents[2] / "src")
TEXTS = ["good", "bad", "fair", "well"]


def fill(queue: Queue, count: int, **more: object) -> None:
    for number in range(count):
        queue.add("ranking", f"question {number}", TEXTS, **more)  # type: ignore[arg-type]


def finish(queue: Queue, person: str, count: int = 10**6) -> list[str]:
    """Do tasks, and say which."""
    seen = []
    while len(seen) < count and (held := queue.next(person)) is not None:
        queue.submit(person, held[0].id, {"ranks": [1, 2, 2, 3]})
        seen.append(held[1].prompt[-1]["content"])
    return seen


def test_every_task_is_done_by_as_many_as_are_wanted(store: Store) -> None:
    queue = Queue(store)
    fill(queue, 5, overlap=2)
    people = [store.person(f"labeler {n}", "labeler").id for n in range(3)]
    seen = Counter[str]()
    for person, count in zip(people, (3, 5, 10), strict=True):
        mine = finish(queue, person, count)
        assert len(set(mine)) == len(mine)
        seen.update(mine)
    assert set(seen.values()) == {2}
    assert len(seen) == 5
    assert queue.progress(people[0])["ranking"] == {"done": 3, "skipped": 0, "open": 0, "left": 0}


def test_the_order_shown_is_by_chance_and_is_undone(store: Store) -> None:
    queue = Queue(store)
    fill(queue, 40)
    ann = store.person("Ann", "labeler").id
    orders = set()
    while (held := queue.next(ann)) is not None:
        assignment, task = held
        shown = [task.responses[place] for place in assignment.shown]
        orders.add(tuple(shown))
        ranks = [{"good": 1, "well": 2, "fair": 4, "bad": 4}[text] for text in shown]
        said = queue.submit(ann, assignment.id, {"ranks": ranks})
        assert said.answer["ranks"] == [1, 3, 3, 2]
    assert len(orders) > 10


def test_a_draft_is_kept_and_the_task_stays_with_its_labeler(store: Store) -> None:
    queue = Queue(store)
    queue.add("rating", "question", ["answer"])
    queue.add("demonstration", "question")
    ann, bob = (store.person(name, "labeler").id for name in ("Ann", "Bob"))
    held = queue.next(ann)
    assert held is not None
    queue.draft(ann, held[0].id, {"flags": [FLAGS[3], FLAGS[0]], "comment": "hm"})
    again = queue.next(ann)
    assert again is not None
    assert again[0].id == held[0].id
    assert again[0].answer == {"score": None, "flags": [FLAGS[0], FLAGS[3]], "comment": "hm"}
    other = queue.next(bob)
    assert other is not None
    assert other[1].kind == "demonstration"
    assert queue.next(store.person("Cleo", "labeler").id) is None
    for attempt in (
        lambda: queue.assigned(bob, held[0].id),
        lambda: queue.draft(bob, held[0].id, {}),
        lambda: queue.submit(bob, held[0].id, {"score": 3}),
        lambda: queue.skip(bob, held[0].id, "mine"),
    ):
        with pytest.raises(NotThere):
            attempt()
    assert queue.done(bob) == []


def test_a_lease_runs_out_and_no_work_is_thrown_away(store: Store) -> None:
    queue, hasty = Queue(store), Queue(store, lease=timedelta(seconds=-1))
    fill(queue, 1)
    ann, bob = (store.person(name, "labeler").id for name in ("Ann", "Bob"))
    held = hasty.next(ann)
    assert held is not None
    got = queue.next(bob)
    assert got is not None
    assert got[1].id == held[1].id
    queue.submit(bob, got[0].id, {"ranks": [1, 1, 1, 1]})
    assert queue.submit(ann, held[0].id, {"ranks": [1, 2, 3, 4]}).state == "done"
    assert len(queue.done(ann)) == len(queue.done(bob)) == 1
    queue.add("rating", "other", ["x"])
    assert queue.next(ann) is not None
    assert queue.next(bob) is None


def test_a_clock_that_was_ahead_blocks_no_task(store: Store) -> None:
    queue = Queue(store)
    fill(queue, 1)
    ann, bob = (store.person(name, "labeler").id for name in ("Ann", "Bob"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_module, "now", lambda: now() + timedelta(days=365))
        held = queue.next(ann)
    assert held is not None
    got = queue.next(bob)
    assert got is not None
    assert got[1].id == held[1].id
    assert queue.submit(ann, held[0].id, {"ranks": [1, 2, 3, 4]}).state == "done"
    queue.add("rating", "other", ["x"])
    begun = queue.next(ann)
    assert begun is not None
    with pytest.MonkeyPatch.context() as patch:  # and back: what is begun stays one's own
        patch.setattr(queue_module, "now", lambda: now() - timedelta(minutes=1))
        queue.draft(ann, begun[0].id, {})
    queue.submit(bob, got[0].id, {"ranks": [1, 2, 3, 4]})
    assert queue.next(bob) is None


def test_what_is_skipped_goes_to_others(store: Store) -> None:
    queue = Queue(store)
    fill(queue, 1)
    ann, bob = (store.person(name, "labeler").id for name in ("Ann", "Bob"))
    held = queue.next(ann)
    assert held is not None
    with pytest.raises(UserError, match="reason"):
        queue.skip(ann, held[0].id, "  ")
    assert queue.skip(ann, held[0].id, "cannot judge it").state == "skipped"
    assert queue.next(ann) is None
    assert queue.progress(ann)["ranking"]["skipped"] == 1
    assert finish(queue, bob) == ["question 0"]
    with pytest.raises(UserError, match="skipped"):
        queue.submit(ann, held[0].id, {"ranks": [1, 2, 3, 4]})
    with pytest.raises(UserError, match="skipped"):
        queue.draft(ann, held[0].id, {})


def test_an_answer_can_be_mended(store: Store) -> None:
    queue = Queue(store)
    queue.add("demonstration", "question")
    ann = store.person("Ann", "labeler").id
    held = queue.next(ann)
    assert held is not None
    queue.submit(ann, held[0].id, {"content": "one"})
    with pytest.raises(UserError, match="done"):
        queue.draft(ann, held[0].id, {"content": "half"})
    with pytest.raises(UserError, match="done"):
        queue.skip(ann, held[0].id, "no")
    queue.submit(ann, held[0].id, {"content": "two"})
    ((done, _),) = queue.done(ann)
    assert done.answer == {"content": "two"}


def test_gold_comes_first_and_now_and_then_to_everybody(store: Store) -> None:
    queue = Queue(store, gold_every=4)
    fill(queue, 9, overlap=2)
    for number in range(3):
        queue.add("ranking", f"gold {number}", TEXTS, gold={"ranks": [1, 4, 2, 3]})
    for name in ("Ann", "Bob"):
        seen = finish(queue, store.person(name, "labeler").id)
        assert [text.split()[0] for text in seen] == (["gold"] + ["question"] * 3) * 3


def test_what_is_no_answer_is_refused(store: Store) -> None:
    queue = Queue(store)
    ann = store.person("Ann", "labeler").id

    def refuse(kind: str, answers: list[dict[str, object]], what: str) -> None:
        held = queue.next(ann, kind)
        assert held is not None
        for answer in answers:
            with pytest.raises(UserError, match=what):
                queue.submit(ann, held[0].id, answer)
        assert queue.assigned(ann, held[0].id)[0].state == "open"

    fill(queue, 1)
    queue.add("rating", "question", ["x"])
    queue.add("demonstration", "question")
    bad_ranks: list[object] = [[1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 5], "1234", [1, 2, 3, True], None]
    refuse("ranking", [{"ranks": ranks} for ranks in bad_ranks] + [{}], "ranks")
    bad_scores: list[object] = [0, 8, 3.5, "4", None, True]
    refuse("rating", [{"score": score} for score in bad_scores] + [{}], "score")
    refuse("rating", [{"score": 4, "flags": ["rude"]}, {"score": 4, "flags": "x"}], "flags")
    refuse("demonstration", [{}, {"content": " \n"}, {"content": 3}], "content")
    for kind, responses, more in [
        ("ranking", ["a"], {}), ("ranking", ["a"] * 10, {}), ("rating", [], {}),
        ("demonstration", ["a"], {}), ("essay", [], {}), ("ranking", TEXTS, {"overlap": 0}),
        ("ranking", TEXTS, {"models": ["m"]}), ("rating", ["a"], {"gold": {"score": 9}}),
        ("demonstration", [], {"gold": {"content": "x"}}),
    ]:  # fmt: skip
        with pytest.raises(UserError):
            queue.add(kind, "question", responses, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prompt"):
        queue.add("demonstration", [{"role": "assistant", "content": "x"}])


def test_many_labelers_at_once_get_no_task_too_often(store: Store) -> None:
    queue = Queue(store)
    fill(queue, 12, overlap=2)
    people = [store.person(f"labeler {n}", "labeler").id for n in range(6)]
    start, seen, problems = threading.Barrier(6), Counter[int](), []

    def work(person: str) -> None:
        start.wait()
        try:
            while (held := queue.next(person)) is not None:
                seen[held[1].id] += 1
                queue.submit(person, held[0].id, {"ranks": [1, 2, 3, 4]})
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert set(seen.values()) == {2}
    assert len(seen) == 12


def test_guidelines(store: Store) -> None:
    queue = Queue(store)
    assert queue.guideline("rating") == ""
    queue.set_guideline("rating", "Be fair.")
    queue.set_guideline("rating", "Be fair and kind.")
    assert queue.guideline("rating") == "Be fair and kind."
    with pytest.raises(UserError, match="kind"):
        queue.set_guideline("essay", "x")


def test_a_deleted_users_prompts_and_labels_are_gone(store: Store, tmp_path: Path) -> None:
    """From SQLite's files too; PostgreSQL cleans its own later, so there the rows are looked at."""
    queue = Queue(store)
    ann, bob = (store.person(name).id for name in ("Ann", "Bob"))
    talk = store.begin(ann).id
    asked = store.add_message(ann, talk, None, "user", "is absinthe good?").id
    prompt = [{"role": "user", "content": "is absinthe good?"}]
    queue.add("ranking", prompt, TEXTS, message=asked)
    queue.add("demonstration", "and lemonade?")
    for answer in ({"ranks": [1, 2, 2, 3]}, {"content": "of vermouth"}):
        held = queue.next(bob)
        assert held is not None
        queue.submit(bob, held[0].id, answer)
    counts = export(store, tmp_path / "out")
    assert (counts["conversations.jsonl"], counts["rankings.jsonl"]) == (1, 1)

    def on_disk(word: bytes) -> bool:
        if store.engine.dialect.name == "sqlite":
            return any(word in path.read_bytes() for path in tmp_path.glob("feedback.db*"))
        with store.engine.connect() as connection:
            return any(
                word in str(row).encode()
                for table in Table.metadata.sorted_tables
                for row in connection.execute(table.select())
            )

    People(store).remove("Ann")
    assert not on_disk(b"absinthe")
    assert on_disk(b"vermouth")
    counts = export(store, tmp_path / "out")
    assert (counts["conversations.jsonl"], counts["rankings.jsonl"]) == (1, 0)
    store.delete_person(bob)
    assert not on_disk(b"vermouth")
    assert on_disk(b"lemonade")
    assert export(store, tmp_path / "out")["conversations.jsonl"] == 0


WRITER = """
import sys
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
store = Store(sys.argv[1])
queue, ann = Queue(store), store.person("Ann", "labeler").id
queue.add("demonstration", "question")
held = queue.next(ann)[0].id
for number in range(1000):
    queue.draft(ann, held, {"content": f"draft {number}"})
    print(number, flush=True)
"""


def test_a_draft_that_is_acknowledged_survives_a_kill(database: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, database], stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 10:
            break
    process.kill()
    rest = process.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest else 10
    store = Store(database)
    held = Queue(store).next(store.person("Ann").id)
    assert held is not None
    assert int(held[0].answer["content"].split()[1]) in (acknowledged, acknowledged + 1)
    store.close()
