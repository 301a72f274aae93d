"""The list of judgements shows every row once, page after page."""

from __future__ import annotations

import pytest

from lmsmith.core.errors import UserError
from lmsmith.feedback.judged import judged_of
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, BetterAnswer, Comparison, Rating, now

MOST = 5


def test_judgements_of_one_time_are_all_listed(store: Store) -> None:
    ann = store.person("Ann", "labeler").id
    queue = Queue(store)
    for number in range(12):
        queue.add("ranking", f"rank {number}", ["a", "b"], models=["ours@1", "ours@2"])
        queue.add("rating", f"rate {number}", ["a"], models=["ours@1"])
        talk = store.begin(ann).id
        asked = store.add_message(ann, talk, None, "user", f"question {number}").id
        left, right = (
            store.add_message(ann, talk, asked, "assistant", text, model="ours@1").id
            for text in ("one", "two")
        )
        store.rate(ann, left, 1)
        store.improve(ann, left, "better")
        store.compare(ann, left, right, "left")
    while (held := queue.next(ann)) is not None:
        answer = {"ranks": [1, 2]} if held[1].kind == "ranking" else {"score": 3}
        queue.submit(ann, held[0].id, answer)
    moment = now()
    with store.session.begin() as session:
        for table in (Rating, BetterAnswer, Comparison):
            session.query(table).update({"created": moment})
        session.query(Assignment).update({"finished": moment})
    seen, before = list[str](), ""
    while before is not None:
        rows, before = judged_of(store, "ours", before, MOST)
        assert len(rows) == MOST or before is None
        seen += [row["id"] for row in rows]
    assert len(seen) == len(set(seen)) == 60


@pytest.mark.parametrize("before", ["now", "1.thumb", "1.thumb-x", "1.other-2", "1e9.thumb-1"])
def test_a_page_that_ends_nowhere_is_refused(store: Store, before: str) -> None:
    with pytest.raises(UserError, match="no page ends there"):
        judged_of(store, "ours", before)
