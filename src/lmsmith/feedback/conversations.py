"""Conversations as trees of messages, each person's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.feedback.database import Database, NotThere
from lmsmith.feedback.tables import Conversation, Message, now

_AFTER = {
    "system": (None,),
    "user": (None, "system", "user", "assistant"),
    "assistant": ("user",),
}
"""Whom a role may follow; None is the beginning. A user may go on after a message without an
answer."""


def may_follow(role: str, before: str | None) -> bool:
    """Whether a message of a role may stand after one of another, or None, at the beginning."""
    return before in _AFTER.get(role, ())


class Conversations(Database):
    """The store's conversations."""

    def begin(self, person: str, title: str = "") -> Conversation:
        """A new conversation."""
        with self.session.begin() as session:
            made = Conversation(person_id=person, title=title)
            session.add(made)
            return made

    def conversations(self, person: str, search: str = "") -> list[Conversation]:
        """A person's, the last used first; with ``search``, those in which it is said."""
        query = select(Conversation).where(Conversation.person_id == person)
        if search:
            said = select(Message.id).where(
                Message.conversation_id == Conversation.id,
                Message.content.icontains(search, autoescape=True),
            )
            query = query.where(
                or_(Conversation.title.icontains(search, autoescape=True), said.exists())
            )
        with self.session() as session:
            return list(session.scalars(query.order_by(Conversation.updated.desc())))

    def rename(self, person: str, conversation: str, title: str) -> None:
        with self.session.begin() as session:
            conversation_of(session, person, conversation).title = title

    def delete(self, person: str, conversation: str) -> None:
        """A conversation and all judgements of it are gone."""
        with self.session.begin() as session:
            session.delete(conversation_of(session, person, conversation))
        self.scrub()

    def add_message(
        self,
        person: str,
        conversation: str,
        parent: int | None,
        role: str,
        content: str,
        *,
        model: str = "",
        settings: dict[str, Any] | None = None,
        finish: str = "",
    ) -> Message:
        """Add a message after another; several after one are siblings.

        Raises:
            NotThere: the conversation or the parent is not this person's.
            UserError: one of this role does not follow there.
        """
        with self.session.begin() as session:
            conversation_of(session, person, conversation).updated = now()
            before = None
            if parent is not None:
                found = message_of(session, person, parent)
                if found.conversation_id != conversation:
                    raise NotThere(f"message {parent} is in another conversation")
                before = found.role
            if not may_follow(role, before):
                after = before or "the beginning"
                raise UserError(f"a message of {role!r} cannot follow {after}")
            made = Message(
                conversation_id=conversation,
                parent_id=parent,
                role=role,
                content=content,
                model=model,
                settings=settings or {},
                finish=finish,
            )
            session.add(made)
            return made

    def tree(self, person: str, conversation: str) -> list[Message]:
        """All messages, each after its parent, siblings in the order they were said."""
        with self.session() as session:
            conversation_of(session, person, conversation)
            query = select(Message).where(Message.conversation_id == conversation)
            return list(session.scalars(query.order_by(Message.id)))

    def path(self, person: str, message: int) -> list[Message]:
        """The messages from the beginning to this one."""
        with self.session() as session:
            return path_to(session, message_of(session, person, message))


def path_to(session: Session, message: Message) -> list[Message]:
    """A message, after those that it follows."""
    path = [message]
    while path[0].parent_id is not None:
        path.insert(0, session.get_one(Message, path[0].parent_id))
    return path


def as_turns(path: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as models and recipes read them: those in a row by one role are one turn."""
    return [
        {"role": role, "content": "\n\n".join(message.content for message in said)}
        for role, said in itertools.groupby(path, lambda message: message.role)
    ]


def conversation_of(session: Session, person: str, conversation: str) -> Conversation:
    query = select(Conversation).where(
        Conversation.id == conversation, Conversation.person_id == person
    )
    found = session.scalar(query)
    if found is None:
        raise NotThere(f"there is no conversation {conversation}")
    return found


def message_of(session: Session, person: str, message: int) -> Message:
    query = (
        select(Message)
        .join(Conversation, Message.conversation_id == Conversation.id)
        .where(Message.id == message, Conversation.person_id == person)
    )
    found = session.scalar(query)
    if found is None:
        raise NotThere(f"there is no message {message}")
    return found
