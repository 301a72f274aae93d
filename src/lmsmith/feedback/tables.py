"""The tables: people and their sessions, conversations, judgements, and the labelling queue.

What belongs to a person or a conversation is deleted with it.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, DateTime, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

ROLES = ("admin", "labeler", "user")
VERDICTS = ("left", "right", "tie", "both_bad")
KINDS = ("demonstration", "rating", "ranking")
STATES = ("open", "done", "skipped")


def now() -> datetime:
    return datetime.now(UTC)


def utc(moment: datetime) -> datetime:
    """A time from the database, which SQLite gives without a time zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def new_id() -> str:
    return secrets.token_hex(8)


class Table(MappedAsDataclass, DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON,
        list[int]: JSON,
        list[dict[str, str]]: JSON,
    }


def refers_to(table: str, **options: Any) -> Any:
    """A reference; deleting a row deletes what refers to it."""
    reference = ForeignKey(f"{table}.id", ondelete="CASCADE")
    return mapped_column(reference, **{"index": True, **options})


class Person(Table, kw_only=True):
    """A user, a labeler or an admin.

    Attributes:
        token_hash: empty for one who cannot log in.
        compares: whether they are shown two versions of a model side by side.
    """

    __tablename__ = "people"
    __table_args__ = (CheckConstraint(f"role in {ROLES}", "known_role"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default_factory=new_id)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    role: Mapped[str] = mapped_column(String(20), default="user")
    token_hash: Mapped[str] = mapped_column(String(64), default="")
    compares: Mapped[bool] = mapped_column(default=True)
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Conversation(Table, kw_only=True):
    """A tree of messages; an imported one has an ``origin``, of which there is only one."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default_factory=new_id)
    person_id: Mapped[str] = refers_to("people")
    title: Mapped[str] = mapped_column(default="")
    origin: Mapped[str | None] = mapped_column(String(64), unique=True, index=True, default=None)
    created: Mapped[datetime] = mapped_column(default_factory=now)
    updated: Mapped[datetime] = mapped_column(default_factory=now)


class Message(Table, kw_only=True):
    """A message after its parent; siblings are its alternatives.

    Attributes:
        model: its author; empty for a person's.
        settings: of its sampling.
        finish: why it ended: ``stop``, ``length``, ``stopped`` by the reader, or empty.
    """

    __tablename__ = "messages"
    __table_args__ = (
        CheckConstraint("role in ('system', 'user', 'assistant')", "known_role"),
        Index("ix_messages_parent_id", "parent_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    conversation_id: Mapped[str] = refers_to("conversations")
    parent_id: Mapped[int | None] = refers_to("messages", index=False)
    role: Mapped[str] = mapped_column(String(20))
    content: Mapped[str]
    model: Mapped[str] = mapped_column(default="")
    settings: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    finish: Mapped[str] = mapped_column(String(20), default="")
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Rating(Table, kw_only=True):
    """Thumbs up (+1) or down (−1) for an answer, a person's only one."""

    __tablename__ = "ratings"
    __table_args__ = (
        UniqueConstraint("message_id", "person_id"),
        CheckConstraint("value in (-1, 1)", "up_or_down"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    message_id: Mapped[int] = refers_to("messages")
    person_id: Mapped[str] = refers_to("people")
    value: Mapped[int]
    reasons: Mapped[list[str]] = mapped_column(default_factory=list)
    comment: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime] = mapped_column(default_factory=now)


class BetterAnswer(Table, kw_only=True):
    """A better answer than a model's: a demonstration."""

    __tablename__ = "better_answers"
    __table_args__ = (UniqueConstraint("message_id", "person_id"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    message_id: Mapped[int] = refers_to("messages")
    person_id: Mapped[str] = refers_to("people")
    content: Mapped[str]
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Comparison(Table, kw_only=True):
    """Two answers to one message, shown side by side without their models' names."""

    __tablename__ = "comparisons"
    __table_args__ = (
        UniqueConstraint("left_id", "right_id", "person_id"),
        CheckConstraint(f"verdict in {VERDICTS}", "known_verdict"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    left_id: Mapped[int] = refers_to("messages")
    right_id: Mapped[int] = refers_to("messages")
    person_id: Mapped[str] = refers_to("people")
    verdict: Mapped[str] = mapped_column(String(20))
    created: Mapped[datetime] = mapped_column(default_factory=now)


class RankedAnswers(Table, kw_only=True):
    """K answers to a prompt in a labeler's order.

    Attributes:
        prompt: messages, the last of which is the user's.
        ranks: one for each response, 1 is best, equal numbers are ties.
        models: their authors, hidden from the labeler.
        shown: the order in which they were shown.
        origin: of an imported one; there is only one ranking of an origin.
    """

    __tablename__ = "rankings"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    person_id: Mapped[str] = refers_to("people")
    prompt: Mapped[list[dict[str, str]]]
    responses: Mapped[list[str]]
    ranks: Mapped[list[int]]
    models: Mapped[list[str]] = mapped_column(default_factory=list)
    shown: Mapped[list[int]] = mapped_column(default_factory=list)
    origin: Mapped[str | None] = mapped_column(String(64), unique=True, index=True, default=None)
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Session(Table, kw_only=True):
    """A browser that is logged in; ``secret_hash`` is of the cookie's secret."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default_factory=new_id)
    person_id: Mapped[str] = refers_to("people")
    secret_hash: Mapped[str] = mapped_column(String(64))
    expires: Mapped[datetime]
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Task(Table, kw_only=True):
    """Something for labelers to judge or to write.

    Attributes:
        kind: to write an answer, to rate one, or to rank several.
        prompt: messages, the last of which is the user's.
        responses: none, one, or K texts.
        models: their authors, hidden from labelers.
        overlap: how many labelers are to do it; a gold task is given to all.
        gold: the right answer, by which labelers are measured; None for a real task.
        origin: its source and settings; there is only one task of an origin.
        message_id: the logged prompt, with which the task is deleted.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint(f"kind in {KINDS}", "known_kind"),
        CheckConstraint("overlap >= 1", "some_overlap"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    kind: Mapped[str] = mapped_column(String(20), index=True)
    prompt: Mapped[list[dict[str, str]]]
    responses: Mapped[list[str]] = mapped_column(default_factory=list)
    models: Mapped[list[str]] = mapped_column(default_factory=list)
    overlap: Mapped[int] = mapped_column(default=1)
    gold: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    origin: Mapped[str | None] = mapped_column(String(64), unique=True, default=None)
    message_id: Mapped[int | None] = refers_to("messages", default=None)
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Assignment(Table, kw_only=True):
    """A labeler's task, open, done or skipped.

    Attributes:
        shown: the order in which the responses are shown: places in `Task.responses`.
        answer: in the order of `Task.responses`; a draft while the task is open.
        lease: until when the task is this labeler's own; somebody else may get it later.
        reason: why it was skipped.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "person_id"),
        CheckConstraint(f"state in {STATES}", "known_state"),
        Index("ix_assignments_person_id_state", "person_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    task_id: Mapped[int] = refers_to("tasks")
    person_id: Mapped[str] = refers_to("people", index=False)
    state: Mapped[str] = mapped_column(String(20), default="open")
    shown: Mapped[list[int]] = mapped_column(default_factory=list)
    answer: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    reason: Mapped[str] = mapped_column(default="")
    lease: Mapped[datetime]
    started: Mapped[datetime] = mapped_column(default_factory=now)
    finished: Mapped[datetime | None] = mapped_column(default=None)


class Guideline(Table, kw_only=True):
    """Instructions for labelers about a kind of task, in place of the usual text."""

    __tablename__ = "guidelines"
    __table_args__ = (CheckConstraint(f"kind in {KINDS}", "known_kind"),)

    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    content: Mapped[str]
    updated: Mapped[datetime] = mapped_column(default_factory=now)
