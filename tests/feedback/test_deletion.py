"""Conversations and people are deleted with all that refers to them, however long the chains."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import insert, text
from sqlalchemy.exc import DatabaseError

from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Comparison, Message, Rating, Task
from stores import rank, row_counts

EMPTY = dict.fromkeys(
    ("people", "conversations", "messages", "ratings", "better_answers", "comparisons", "rankings"),
    0,
)
WHEN = datetime(2026, 11, 29, tzinfo=UTC)


def chain(store: Store, person: str, length: int) -> tuple[str, int, int]:
    """A conversation of so many messages, each after the one before; its first and last one."""
    name = store.begin(person, "long").id
    with store.session.begin() as session:
        first = (session.query(Message.id).order_by(Message.id.desc()).limit(1).scalar() or 0) + 1
        rows = [
            {
                "id": first + place,
                "conversation_id": name,
                "parent_id": first + place - 1 if place else None,
                "role": "assistant" if place % 2 else "user",
                "content": "tea",
                "model": "",
                "settings": {},
                "finish": "",
                "created": WHEN,
            }
            for place in range(length)
        ]
        session.execute(insert(Message), rows)
    return name, first, first + length - 1


@pytest.mark.parametrize("length", [1_000, 1_001, 3_000])
def test_a_long_conversation_is_deleted(store: Store, length: int) -> None:
    ann = store.person("Ann").id
    name, _, last = chain(store, ann, length)
    assert len(store.path(ann, last)) == length
    store.delete(ann, name)
    assert row_counts(store) == EMPTY | {"people": 1}


def test_the_longest_one_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")  # PostgreSQL takes a millisecond a message
    ann = store.person("Ann").id
    name, _, last = chain(store, ann, 100_000)
    path = store.path(ann, last)
    assert [path[0].parent_id, len(path), path[-1].id] == [None, 100_000, last]
    store.delete(ann, name)
    assert row_counts(store)["messages"] == 0
    store.close()


def test_a_persons_long_conversations_go_with_all_that_refers_to_them(store: Store) -> None:
    people = People(store)
    people.add("Ann", "labeler")
    ann, bob = people.named("Ann").id, store.person("Bob", "labeler").id
    queue = Queue(store)
    for _ in range(2):
        _, first, last = chain(store, ann, 1_200)
        with store.session.begin() as session:
            for answer in range(first + 1, last, 2):
                session.add(Rating(message_id=answer, person_id=bob, value=1))
            for answer in range(first + 1, last - 2, 2):  # of anybody's making
                session.add(
                    Comparison(left_id=answer, right_id=answer + 2, person_id=bob, verdict="left")
                )
            for asked in range(first, last, 2):
                session.add(
                    Task(kind="rating", prompt=[], responses=["a"], message_id=asked, overlap=2)
                )
    assert queue.next(bob, "rating") is not None
    rank(store, ann, [{"role": "user", "content": "tea?"}], ["a", "b"], [1, 2])
    people.remove("Ann")
    assert row_counts(store) == EMPTY | {"people": 1}
    with store.session() as session:
        for table in ("tasks", "assignments", "sessions"):
            assert session.scalar(text(f"select count(*) from {table}")) == 0


def test_the_token_ends_first_even_if_the_rest_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = People(store)
    token = people.add("Ann", "user")
    ann = people.named("Ann").id
    cookie = people.open_session(ann)
    chain(store, ann, 10)

    def fails(*_: object) -> None:
        raise DatabaseError("delete", {}, Exception("the disk is full"))

    with monkeypatch.context() as patched:
        patched.setattr("lmsmith.feedback.people.delete_conversation", fails)
        with pytest.raises(DatabaseError):
            people.remove("Ann")
    assert people.by_token(token) is None
    assert people.by_session(cookie) is None
    assert row_counts(store)["messages"] == 10
    people.remove("Ann")
    assert row_counts(store) == EMPTY


def test_another_persons_conversations_stay(store: Store) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob").id
    chain(store, ann, 1_100)
    kept, _, last = chain(store, bob, 1_100)
    store.delete_person(ann)
    assert len(store.tree(bob, kept)) == len(store.path(bob, last)) == 1_100
