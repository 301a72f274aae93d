"""Conversations that were had elsewhere, added to the database with their judgements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.feedback.conversations import may_follow
from lmsmith.feedback.database import NAMES_A_QUERY, Database
from lmsmith.feedback.tables import BetterAnswer, Conversation, Message, Rating

IMPORTING = 7_310_552
"""PostgreSQL's advisory lock for importing; any number that nothing else uses."""


@dataclass(frozen=True)
class Said:
    """A message of a tree.

    Attributes:
        parent: its place in the tree, None at the beginning.
        about: ``model``, ``settings`` and ``finish``, where they are known.
        rating: ``value``, ``reasons`` and ``comment``, if its reader gave one.
        better: what would have been better, if its reader said so.
    """

    parent: int | None
    role: str
    content: str
    about: dict[str, Any] = field(default_factory=dict)
    rating: dict[str, Any] | None = None
    better: str | None = None


@dataclass(frozen=True)
class Tree:
    """A conversation, each message after its parent.

    Attributes:
        origin: a second one of one origin is not added.
    """

    title: str
    messages: Sequence[Said]
    origin: str


def in_turn(messages: Iterable[dict[str, str]]) -> list[Said]:
    """Messages each of which follows the one before."""
    return [
        Said(number - 1 if number else None, message["role"], message["content"])
        for number, message in enumerate(messages)
    ]


def origin_of(person: str, messages: Sequence[Said]) -> str:
    """The name of what a person imports: the same for the same messages, whatever file has them.
    Where a file has them several times, a number follows, from 1."""
    said: list[Any] = [{"role": each.role, "content": each.content} for each in messages]
    parents = [each.parent for each in messages]
    if parents != [None, *range(len(messages) - 1)]:
        said.append(parents)
    return fingerprint(["conversation", person, said])


def check_tree(messages: Sequence[Said], where: str) -> None:
    """Raises UserError if a message cannot stand where it does."""
    for number, each in enumerate(messages):
        before = None if each.parent is None else messages[each.parent].role
        if not may_follow(each.role, before):
            after = before or "the beginning"
            problem = f"a message of {each.role!r} cannot follow {after}"
            raise UserError(f"{where}: message {number + 1}: {problem}")


def known_origins(session: Session, table: Any, names: Sequence[str]) -> set[str]:
    """Those that are in the database already."""
    known: set[str] = set()
    for start in range(0, len(names), NAMES_A_QUERY):
        some = names[start : start + NAMES_A_QUERY]
        known |= set(session.scalars(select(table.origin).where(table.origin.in_(some))))
    return known


def bring(store: Database, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add those of a person's that are not there yet, each once; the new ones."""
    first = {tree.origin: tree for tree in reversed(trees)}
    with store.exclusive(IMPORTING) as session:
        known = known_origins(session, Conversation, list(first))
        new = [tree for tree in trees if first[tree.origin] is tree and tree.origin not in known]
        return add_trees(session, person, new)


def add_trees(session: Session, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add conversations of a person: all first messages, then all that follow these, and so on,
    since each needs its parent's number."""
    made = [Conversation(person_id=person, title=tree.title, origin=tree.origin) for tree in trees]
    session.add_all(made)
    session.flush()
    added: list[dict[int, Message]] = [{} for _ in trees]
    left = [dict(enumerate(tree.messages)) for tree in trees]
    while any(left):
        new = []
        for conversation, there, missing in zip(made, added, left, strict=True):
            ready = [
                n for n, each in missing.items() if each.parent is None or each.parent in there
            ]
            new += [(there, n, _message(conversation, there, missing.pop(n))) for n in ready]
        session.add_all(message for _, _, message in new)
        session.flush()
        for there, number, message in new:
            there[number] = message
    for tree, there in zip(trees, added, strict=True):
        for number, said in enumerate(tree.messages):
            session.add_all(_judgements(person, there[number], said))
    session.flush()
    return made


def _message(conversation: Conversation, there: dict[int, Message], said: Said) -> Message:
    return Message(
        conversation_id=conversation.id,
        parent_id=None if said.parent is None else there[said.parent].id,
        role=said.role,
        content=said.content,
        **said.about,
    )


def _judgements(person: str, message: Message, said: Said) -> Iterable[Rating | BetterAnswer]:
    if said.rating is not None:
        yield Rating(message_id=message.id, person_id=person, **said.rating)
    if said.better is not None:
        yield BetterAnswer(message_id=message.id, person_id=person, content=said.better)
