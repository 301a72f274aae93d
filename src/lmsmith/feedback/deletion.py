"""Deletion of conversations and people with all that refers to them, however long the chains.

Each message refers to its parent, so a delete that cascades follows a conversation message by
message. SQLite ends that after 1,000 messages, and PostgreSQL when its stack is full. Here the
references between the messages are dropped first; the rest is at most three references deep.
"""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from lmsmith.feedback import tables
from lmsmith.feedback.tables import Conversation, Message, Person


def delete_conversation(session: Session, conversation: str) -> None:
    """Delete a conversation, its messages, and what refers to them."""
    # PostgreSQL: nobody adds a message from here to the end of the transaction.
    locked = select(Conversation.id).where(Conversation.id == conversation).with_for_update()
    session.execute(locked)
    own = Message.conversation_id == conversation
    session.execute(update(Message).where(own).values(parent_id=None))
    session.execute(delete(Message).where(own))
    session.execute(delete(Conversation).where(Conversation.id == conversation))


def conversations_of(session: Session, person: str) -> list[str]:
    """The ids of a person's conversations."""
    return list(session.scalars(select(Conversation.id).where(Conversation.person_id == person)))


def revoke(session: Session, person: str) -> None:
    """End a person's token and sessions."""
    session.execute(update(Person).where(Person.id == person).values(token_hash=""))
    session.execute(delete(tables.Session).where(tables.Session.person_id == person))


def delete_person_row(session: Session, person: str) -> None:
    """Delete a person, and conversations that were begun since the others were deleted."""
    session.execute(select(Person.id).where(Person.id == person).with_for_update())
    for conversation in conversations_of(session, person):
        delete_conversation(session, conversation)
    session.execute(delete(Person).where(Person.id == person))
