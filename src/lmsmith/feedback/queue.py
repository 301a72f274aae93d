"""The labelling queue: tasks come in, go to labelers one at a time, and come back answered.

A task belongs to one labeler during a lease, which every draft renews. After that somebody else may
get the task; the first labeler's draft stays, and a late answer is accepted: `Task.overlap` is the
least number of answers, and no work is thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import validate_prompt
from lmsmith.feedback import answers
from lmsmith.feedback.database import NotThere
from lmsmith.feedback.store import Store, as_turns, path_to
from lmsmith.feedback.tables import KINDS, Assignment, Guideline, Message, Task, now

LEASE = timedelta(minutes=30)
GOLD_EVERY = 10
MOST_OVERLAP = 100

_HANDING_OUT = 7_310_551
"""PostgreSQL's advisory lock for adding and handing out; any number that nothing else uses."""

AssignedTask = tuple[Assignment, Task]


class Queue:
    """The queue of a database.

    Args:
        store: the database.
        lease: time that a task is one labeler's own after their last draft.
        gold_every: a labeler's first task, and every n-th after it, is a gold one if one is left.

    Raises:
        NotThere: an assignment is another labeler's, or none.
        UserError: a task or an answer is invalid; names the problem.
    """

    def __init__(
        self, store: Store, *, lease: timedelta = LEASE, gold_every: int = GOLD_EVERY
    ) -> None:
        self._store, self._lease, self._gold_every = store, lease, gold_every

    # Tasks

    def add(self, kind: str, prompt: object, responses: Sequence[str] = (), **given: Any) -> bool:
        """Add a `new_task`; returns False if there is one of this origin.

        Raises:
            NotThere: the logged message that the prompt ends with is gone.
        """
        made = new_task(kind, prompt, responses, **given)
        origin = made.origin
        try:
            with self._store.exclusive(_HANDING_OUT) as session:
                _check_message(session, made)
                session.add(made)
        except IntegrityError:
            if origin is not None and self.has(origin):
                return False
            raise
        return True

    def count(self) -> int:
        """The number of tasks."""
        with self._store.session() as session:
            return session.scalar(select(func.count()).select_from(Task)) or 0

    def has(self, origin: str) -> bool:
        """Whether there is a task of this origin."""
        with self._store.session() as session:
            return session.scalar(select(Task.id).where(Task.origin == origin)) is not None

    # A labeler's work

    def next(self, person: str, kind: str | None = None) -> AssignedTask | None:
        """The task of this kind, or of any, that this labeler has begun, or a new one, or None."""
        kinds = KINDS if kind is None else (kind,)
        with self._store.exclusive(_HANDING_OUT) as session:
            begun = _assignments(person, Assignment.state == "open", Task.kind.in_(kinds))
            row = session.execute(begun.order_by(Assignment.id).limit(1)).one_or_none()
            if row is not None:
                row[0].lease = now() + self._lease
                return row[0], row[1]
            task = self._choose(session, person, kinds)
            if task is None:
                return None
            shown = list(range(len(task.responses)))
            random.SystemRandom().shuffle(shown)
            lease = now() + self._lease
            made = Assignment(task_id=task.id, person_id=person, shown=shown, lease=lease)
            session.add(made)
            return made, task

    def assigned(self, person: str, assignment: int) -> AssignedTask:
        """A task that this labeler has or had; raises NotThere for another's, or none."""
        with self._store.session() as session:
            return _assigned(session, person, assignment)

    def draft(self, person: str, assignment: int, answer: Mapping[str, Any]) -> Assignment:
        """Save an unfinished answer, ranks in the order shown; the lease is renewed."""
        return self._save(person, assignment, answer, whole=False)

    def submit(self, person: str, assignment: int, answer: Mapping[str, Any]) -> Assignment:
        """Save the whole answer, ranks in the order shown; it may replace an earlier one."""
        return self._save(person, assignment, answer, whole=True)

    def skip(self, person: str, assignment: int, reason: str) -> Assignment:
        """Give a task back to others, with a reason."""
        if not reason.strip() or len(reason) > answers.LONGEST:
            raise UserError("reason: say in a few words why the task is skipped")
        with self._store.session.begin() as session:
            found, _ = _assigned(session, person, assignment)
            if found.state == "done":
                raise UserError(f"assignment {assignment} is done; it cannot be skipped")
            found.state, found.reason, found.finished = "skipped", reason, now()
            return found

    def done(self, person: str, most: int = 50) -> list[AssignedTask]:
        """This labeler's finished tasks, the last first."""
        with self._store.session() as session:
            query = _assignments(person, Assignment.state == "done").order_by(
                Assignment.finished.desc(), Assignment.id.desc()
            )
            return [(found, task) for found, task in session.execute(query.limit(most))]

    def progress(self, person: str) -> dict[str, Any]:
        """How many of each kind this labeler has done and skipped, and how many there are left."""
        found: dict[str, Any] = {
            kind: {"done": 0, "skipped": 0, "open": 0, "left": 0} for kind in KINDS
        }
        with self._store.session() as session:
            counted = (
                select(Task.kind, Assignment.state, func.count())
                .join(Task, Assignment.task_id == Task.id)
                .where(Assignment.person_id == person)
                .group_by(Task.kind, Assignment.state)
            )
            for kind, state, count in session.execute(counted):
                found[kind][state] = count
            left = self._left(person, KINDS).with_only_columns(Task.kind, func.count())
            for kind, count in session.execute(left.group_by(Task.kind)):
                found[kind]["left"] = count
        return found

    # Guidelines

    def guideline(self, kind: str) -> str:
        """Instructions for labelers about a kind; empty where it is the usual text."""
        with self._store.session() as session:
            found = session.get(Guideline, kind)
            return found.content if found is not None else ""

    def set_guideline(self, kind: str, content: str) -> None:
        """Replace the instructions; an empty text is the usual one."""
        if kind not in KINDS or len(content) > answers.LONGEST:
            raise UserError(f"kind {kind!r}: expected one of {', '.join(KINDS)}, and a text")
        with self._store.session.begin() as session:
            session.merge(Guideline(kind=kind, content=content))

    def _save(
        self, person: str, assignment: int, answer: Mapping[str, Any], *, whole: bool
    ) -> Assignment:
        with self._store.session.begin() as session:
            found, task = _assigned(session, person, assignment)
            if found.state != "open" and not (whole and found.state == "done"):
                raise UserError(f"assignment {assignment} is {found.state}, no longer a draft")
            saved = answers.checked(task.kind, len(task.responses), answer, whole=whole)
            if "ranks" in saved:
                ranks = dict(zip(found.shown, saved["ranks"], strict=True))
                saved["ranks"] = [ranks[place] for place in sorted(ranks)]
            found.answer, found.lease = saved, now() + self._lease
            if whole:
                found.state, found.finished = "done", found.finished or now()
            return found

    def _choose(self, session: Session, person: str, kinds: Sequence[str]) -> Task | None:
        done = session.scalar(
            select(func.count()).where(Assignment.person_id == person, Assignment.state != "open")
        )
        gold = Task.gold.is_not(None)
        first = gold if (done or 0) % self._gold_every == 0 else gold.is_(False)
        query = self._left(person, kinds).order_by(first.desc(), Task.id).limit(1)
        return session.scalar(query)

    def _left(self, person: str, kinds: Sequence[str]) -> Select[Task]:
        """Tasks that this labeler may get."""
        moment = now()
        mine = select(Assignment.id).where(
            Assignment.task_id == Task.id, Assignment.person_id == person
        )
        taken = (
            select(func.count())
            .where(
                Assignment.task_id == Task.id,
                or_(
                    Assignment.state == "done",
                    # A lease of a clock that was ahead is none, or nobody else got the task.
                    (Assignment.state == "open")
                    & (Assignment.lease > moment)
                    & (Assignment.lease <= moment + max(self._lease, LEASE)),
                ),
            )
            .correlate(Task)
            .scalar_subquery()
        )
        return select(Task).where(
            Task.kind.in_(kinds), ~mine.exists(), or_(Task.gold.is_not(None), taken < Task.overlap)
        )


def new_task(
    kind: str,
    prompt: object,
    responses: Sequence[str] = (),
    *,
    models: Sequence[str] = (),
    overlap: int = 1,
    gold: Mapping[str, Any] | None = None,
    origin: str | None = None,
    message: int | None = None,
) -> Task:
    """A task that is in no database yet, with the attributes of `Task`; raises UserError for
    invalid ones."""
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    messages = validate_prompt(prompt, f"the {kind}")
    answers.check_responses(kind, responses)
    if models and len(models) != len(responses):
        raise UserError(f"{len(models)} models of {len(responses)} answers: name each one's")
    if not 1 <= overlap <= MOST_OVERLAP:
        raise UserError(f"overlap = {overlap}: expected 1 to {MOST_OVERLAP} labelers")
    right = None
    if gold is not None:
        if kind == "demonstration":
            raise UserError("a demonstration has no gold: there is no one right text")
        right = answers.checked(kind, len(responses), gold, whole=True)
    return Task(
        kind=kind,
        prompt=messages,
        responses=list(responses),
        models=list(models),
        overlap=overlap,
        gold=right,
        origin=origin,
        message_id=message,
    )


def _check_message(session: Session, task: Task) -> None:
    """Raises NotThere if a task's message is gone. SQLite may give its id to another message."""
    if task.message_id is None:
        return
    found = session.get(Message, task.message_id, with_for_update=True)
    if found is None or as_turns(path_to(session, found)) != task.prompt:
        raise NotThere(f"message {task.message_id} is gone, or says something else")


def _assignments(person: str, *conditions: ColumnElement[bool]) -> Select[Assignment, Task]:
    """A labeler's assignments with their tasks."""
    query = select(Assignment, Task).join(Task, Assignment.task_id == Task.id)
    return query.where(Assignment.person_id == person, *conditions)


def _assigned(session: Session, person: str, assignment: int) -> AssignedTask:
    query = _assignments(person, Assignment.id == assignment)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotThere(f"there is no assignment {assignment}")
    return found[0], found[1]
