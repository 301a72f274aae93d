"""Win rates by people: equal replies, and pairs that are not judged yet."""

from __future__ import annotations

from lmsmith.comparison.instructions import Instruction, Replies
from lmsmith.comparison.people import people_judge
from lmsmith.comparison.win_rate import Versus
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store


def ask(store: Store, a: list[str], b: list[str]) -> Versus:
    asked = [Instruction(str(n), ({"role": "user", "content": f"q{n}"},)) for n in range(len(a))]
    sides = [Replies(n, tuple(texts), AnswerSpec(), 0, n) for n, texts in (("a", a), ("b", b))]
    return people_judge(store, asked, *sides)


def test_equal_replies_count_when_every_other_pair_is_judged(sqlite_store: Store) -> None:
    a, b = ["same", "good", "", "same"], ["same", "bad", "words", "same"]
    first = ask(sqlite_store, a, b)
    assert first.people is not None
    assert (first.rate, first.people.added, first.people.waiting) == (None, 2, 2)
    queue, lee = Queue(sqlite_store), sqlite_store.person("Lee", "labeler").id
    counts = []
    while (held := queue.next(lee)) is not None:
        texts = [held[1].responses[place] for place in held[0].shown]
        ranks = [1 if text in ("good", "words") else 2 for text in texts]
        queue.submit(lee, held[0].id, {"ranks": ranks})
        found = ask(sqlite_store, a, b)
        assert found.rate is not None
        counts.append((len(found.rows), found.rate.value))
    assert counts == [(1, 1.0), (4, 0.5)]  # won; won, lost, and two ties
    assert found.a.empty == 1
