"""Conversations of files as trees of messages, and how they are written into the database.

SQLite has one writer. An import takes that place for a slice of some thousand messages at a time,
and rests between slices, so that others write meanwhile. A conversation is in one slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.feedback.database import NAMES_A_QUERY
from lmsmith.feedback.store import MOST_CHARACTERS, MOST_MESSAGES, TOO_LARGE, Store, check_order
from lmsmith.feedback.tables import BetterAnswer, Conversation, Message, Rating, Table, now

IMPORTING = 7_310_552
"""PostgreSQL's advisory lock for importing; any number that nothing else uses."""

SLICE = 4_000
"""Messages or rows that are written together; a thousand characters count as one more."""

REST_SECONDS = 0.12
"""Between slices. A writer that waits tries again after 0.1 seconds at most (SQLite)."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_in_slices(
    store: Store,
    items: Sequence[Item],
    weight: Callable[[Item], int],
    write: Callable[[Session, list[Item]], Result],
) -> list[Result]:
    """Write items in transactions of `SLICE` in total weight, one at least; what each gave."""
    found = list[Result]()
    for part in _slices(items, weight):
        if found:
            time.sleep(REST_SECONDS)
        with store.exclusive(IMPORTING) as session:
            found.append(write(session, part))
    return found


def _slices(items: Sequence[Item], weight: Callable[[Item], int]) -> Iterator[list[Item]]:
    part, total = list[Item](), 0
    for each in items:
        size = weight(each)
        if part and total + size > SLICE:
            yield part
            part, total = [], 0
        part.append(each)
        total += size
    if part:
        yield part


@dataclass(frozen=True)
class ImportedMessage:
    """A message of a tree.

    Attributes:
        parent: its place in the tree, None at the beginning.
        about: ``model``, ``settings`` and ``finish``, where they are known.
        rating: ``value``, ``reasons`` and ``comment``, if its reader gave one.
        better: a better answer, if its reader gave one.
    """

    parent: int | None
    role: str
    content: str
    about: dict[str, Any] = field(default_factory=dict)
    rating: dict[str, Any] | None = None
    better: str | None = None


@dataclass(frozen=True)
class Tree:
    """A conversation, each message after its parent; only one of an origin is added."""

    title: str
    messages: Sequence[ImportedMessage]
    origin: str


def in_turn(messages: Iterable[dict[str, str]]) -> list[ImportedMessage]:
    """Messages each of which follows the one before."""
    return [
        ImportedMessage(number - 1 if number else None, message["role"], message["content"])
        for number, message in enumerate(messages)
    ]


def origin_of(person: str, messages: Sequence[ImportedMessage]) -> str:
    """The origin of a conversation that a person imports: the same for the same messages, whatever
    file has them. Where a file has them several times, a number follows, from 1."""
    content: list[Any] = [{"role": each.role, "content": each.content} for each in messages]
    parents = [each.parent for each in messages]
    if parents != [None, *range(len(messages) - 1)]:
        content.append(parents)
    return fingerprint(["conversation", person, content])


def check_size(messages: Sequence[ImportedMessage], where: str) -> None:
    """Raises UserError for a conversation of more than there may be in one."""
    count, characters = len(messages), sum(len(each.content) for each in messages)
    if count > MOST_MESSAGES or characters > MOST_CHARACTERS:
        raise UserError(
            f"{where}: {count:,} messages of {characters:,} characters: {TOO_LARGE}",
            "divide it into several",
        )


def check_tree(messages: Sequence[ImportedMessage], where: str) -> None:
    """Raises UserError if a message cannot stand where it does, or if they are too many."""
    check_size(messages, where)
    for number, each in enumerate(messages, start=1):
        before = None if each.parent is None else messages[each.parent].role
        check_order(each.role, before, f"{where}: message {number}: ")


def import_trees(store: Store, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add those of a person's trees that are not there yet; returns the new conversations."""
    first = {tree.origin: tree for tree in reversed(trees)}
    wanted = [tree for tree in trees if first[tree.origin] is tree]

    def write(session: Session, part: list[Tree]) -> list[Conversation]:
        known = known_origins(session, Conversation, [tree.origin for tree in part])
        return _add_trees(session, person, [each for each in part if each.origin not in known])

    return [made for part in write_in_slices(store, wanted, _weight, write) for made in part]


def _weight(tree: Tree) -> int:
    return 1 + len(tree.messages) + sum(len(each.content) for each in tree.messages) // 1000


def known_origins(session: Session, table: Any, origins: Sequence[str]) -> set[str]:
    """Origins that are in the database already."""
    known: set[str] = set()
    for start in range(0, len(origins), NAMES_A_QUERY):
        some = origins[start : start + NAMES_A_QUERY]
        known |= set(session.scalars(select(table.origin).where(table.origin.in_(some))))
    return known


def _new_numbers(session: Session, count: int) -> Sequence[int]:
    """Numbers for new messages, in the order of time."""
    if session.get_bind().dialect.name == "sqlite":  # this transaction is the only writer
        last = session.scalar(select(func.max(Message.id))) or 0
        return range(last + 1, last + 1 + count)
    names = "SELECT nextval(pg_get_serial_sequence('messages', 'id')) FROM generate_series(1, :n)"
    return sorted(session.scalars(text(names), {"n": count}))


def _add_trees(session: Session, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add conversations of a person, all messages in one statement."""
    made = [Conversation(person_id=person, title=tree.title, origin=tree.origin) for tree in trees]
    session.add_all(made)
    session.flush()
    numbers = _new_numbers(session, sum(len(tree.messages) for tree in trees))
    created, first = now(), 0
    rows: dict[type[Table], list[dict[str, Any]]] = {Message: [], Rating: [], BetterAnswer: []}
    for conversation, tree in zip(made, trees, strict=True):
        for place, each in enumerate(tree.messages, start=first):
            rows[Message].append(
                {
                    "id": numbers[place],
                    "conversation_id": conversation.id,
                    "parent_id": None if each.parent is None else numbers[first + each.parent],
                    "role": each.role,
                    "content": each.content,
                    "created": created,
                    **_PLAIN,
                    **each.about,
                }
            )
            of = {"message_id": numbers[place], "person_id": person, "created": created}
            if each.rating is not None:
                rows[Rating].append(of | each.rating)
            if each.better is not None:
                rows[BetterAnswer].append(of | {"content": each.better})
        first += len(tree.messages)
    for table, values in rows.items():
        if values:
            session.connection().execute(insert(table), values)
    return made


_PLAIN: dict[str, Any] = {"model": "", "settings": {}, "finish": ""}
