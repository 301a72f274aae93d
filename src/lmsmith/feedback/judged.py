"""What people judged of a model's versions, with the conversation they judged it in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, String, cast, or_, select
from sqlalchemy.orm import Session, aliased

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store, as_turns, path_to
from lmsmith.feedback.tables import (
    Assignment,
    BetterAnswer,
    Comparison,
    Message,
    Person,
    Rating,
    Task,
    utc,
)

ROWS = 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


def judged_of(
    store: Store, name: str, before: str = "", most: int = ROWS
) -> tuple[list[Row], str | None]:
    """Judgements of a model's answers, the newest first.

    Args:
        store: the database.
        name: of the versions; answers of ``name`` and of ``name@N`` count.
        before: where the page before ended; empty for the first page.
        most: rows of a page.

    Returns:
        The rows, and where they end; None if there are no more.

    Raises:
        UserError: ``before`` is no end of a page.
    """
    until, last = _read(before) if before else (None, "")
    with store.session() as session:
        names = {row.id: row.name for row in session.execute(select(Person.id, Person.name))}
        found = [
            row
            for rows in (_thumbs, _better, _compared, _ranked)
            for row in rows(session, name, until, most + 1 + bool(before))
        ]
        found.sort(key=lambda row: (row["created"], row["id"]), reverse=True)
        if until is not None:
            found = [row for row in found if (row["created"], row["id"]) < (until, last)]
        shown = found[:most]
        for row in shown:
            row["person"] = names.get(row["person"], "")
            row["messages"] = _turns(session, row["messages"])
    if not found[most:]:
        return shown, None
    microseconds = (shown[-1]["created"] - _EPOCH) // timedelta(microseconds=1)
    return shown, f"{microseconds}.{shown[-1]['id']}"


def _read(before: str) -> tuple[datetime, str]:
    microseconds, _, last = before.partition(".")
    try:
        return _EPOCH + timedelta(microseconds=int(microseconds)), last
    except (ValueError, OverflowError):
        raise UserError(
            f"before = {before!r}: no page ends there", "take next of the last page"
        ) from None


def _by(model: Any, name: str) -> ColumnElement[bool]:
    return or_(model == name, model.startswith(f"{name}@", autoescape=True))


def _row(kind: str, each: Any, version: str, messages: Any, **more: Any) -> Row:
    created = utc(getattr(each, "finished", None) or getattr(each, "created", None) or each.started)
    return {
        "id": f"{kind}-{each.id}",
        "kind": kind,
        "created": created,
        "person": each.person_id,
        "version": version,
        "messages": messages,
        **more,
    }


def _turns(session: Session, given: Any) -> list[dict[str, str]]:
    """A task's prompt as it is, or the messages before an answer."""
    if not isinstance(given, Message):
        return list(given)
    return as_turns(path_to(session, given)[:-1])


def _thumbs(session: Session, name: str, until: datetime | None, most: int) -> Iterator[Row]:
    query = select(Rating, Message).join(Message, Rating.message_id == Message.id)
    query = query.where(_by(Message.model, name))
    if until is not None:
        query = query.where(Rating.created <= until)
    for thumb, answer in session.execute(query.order_by(Rating.created.desc()).limit(most)):
        verdict = "up" if thumb.value > 0 else "down"
        about = {"reasons": thumb.reasons, "comment": thumb.comment}
        yield _row(
            "thumb", thumb, answer.model, answer, response=answer.content, verdict=verdict, **about
        )


def _better(session: Session, name: str, until: datetime | None, most: int) -> Iterator[Row]:
    query = select(BetterAnswer, Message).join(Message, BetterAnswer.message_id == Message.id)
    query = query.where(_by(Message.model, name))
    if until is not None:
        query = query.where(BetterAnswer.created <= until)
    for better, answer in session.execute(query.order_by(BetterAnswer.created.desc()).limit(most)):
        yield _row(
            "better_answer",
            better,
            answer.model,
            answer,
            response=answer.content,
            verdict="better",
            better=better.content,
        )


def _compared(session: Session, name: str, until: datetime | None, most: int) -> Iterator[Row]:
    left, right = aliased(Message), aliased(Message)
    query = (
        select(Comparison, left, right)
        .join(left, Comparison.left_id == left.id)
        .join(right, Comparison.right_id == right.id)
        .where(or_(_by(left.model, name), _by(right.model, name)))
    )
    if until is not None:
        query = query.where(Comparison.created <= until)
    query = query.order_by(Comparison.created.desc()).limit(most)
    for pair, first, second in session.execute(query):
        yield _row(
            "comparison",
            pair,
            first.model,
            first,
            response=first.content,
            verdict=pair.verdict,
            other={"version": second.model, "response": second.content},
        )


def _ranked(session: Session, name: str, until: datetime | None, most: int) -> Iterator[Row]:
    """Rankings and ratings of the labelling queue."""
    models = cast(Task.models, String)
    query = (
        select(Assignment, Task)
        .join(Task, Assignment.task_id == Task.id)
        .where(
            Assignment.state == "done",
            Task.gold.is_(None),
            Task.kind != "demonstration",
            or_(
                models.contains(f'"{name}"', autoescape=True),
                models.contains(f'"{name}@', autoescape=True),
            ),
        )
    )
    if until is not None:
        query = query.where(Assignment.finished <= until)
    for done, task in session.execute(query.order_by(Assignment.finished.desc()).limit(most)):
        yield _row(
            task.kind,
            done,
            task.models[0],
            task.prompt,
            response=task.responses[0],
            verdict=done.answer.get("ranks", done.answer.get("score")),
            responses=[
                {"version": model, "response": text}
                for model, text in zip(task.models, task.responses, strict=True)
            ],
            comment=done.answer.get("comment", ""),
        )
