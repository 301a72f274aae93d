"""The tables of the labelling queue, of guidelines, and of who is logged in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from lmsmith.feedback.tables import Table, new_id, now, refers_to

KINDS = ("demonstration", "rating", "ranking")
STATES = ("open", "done", "skipped")


class Session(Table, kw_only=True):
    """A browser that is logged in, until it is logged out or the time is up.

    Attributes:
        secret_hash: of what the cookie holds beside the id.
    """

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default_factory=new_id)
    person_id: Mapped[str] = refers_to("people")
    secret_hash: Mapped[str] = mapped_column(String(64))
    expires: Mapped[datetime]
    created: Mapped[datetime] = mapped_column(default_factory=now)


class Task(Table, kw_only=True):
    """Something for labelers to judge or to write.

    Attributes:
        kind: what is asked: to write an answer, to rate one, to rank several.
        prompt: messages, the last of which is the user's.
        responses: none, one, or K texts.
        models: that wrote them; hidden from labelers.
        overlap: how many labelers are to do it; a gold task is given to all.
        gold: the right answer, by which labelers are measured; None for a real task.
        origin: what it was made of and how; a second task of one origin is not made.
        message_id: the logged message that asks, with which the task is deleted.
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
    """A task in a labeler's hands, or done, or skipped.

    Attributes:
        shown: the order in which the responses are shown: places in `Task.responses`.
        answer: what is said so far, in the order of `Task.responses`; the draft while it is open.
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
    """What labelers are told about a kind of task, where it is not the usual text."""

    __tablename__ = "guidelines"
    __table_args__ = (CheckConstraint(f"kind in {KINDS}", "known_kind"),)

    kind: Mapped[str] = mapped_column(String(20), primary_key=True)
    content: Mapped[str]
    updated: Mapped[datetime] = mapped_column(default_factory=now)
