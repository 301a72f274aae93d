"""What people judged of a model's versions, with the conversation they judged it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, String, and_, cast, or_, select
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
Query = TypeVar("Query", bound="Select[*tuple[Any, ...]]")


class _End(NamedTuple):
    """The last row of a page; rows are ordered by these three, the greatest first."""

    created: datetime
    kind: str
    number: int


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
    end = _read(before) if before else None
    with store.session() as session:
        names = {row.id: row.name for row in session.execute(select(Person.id, Person.name))}
        found = [row for rows in _KINDS.values() for row in rows(session, name, end, most + 1)]
        found.sort(key=_end_of, reverse=True)
        shown = found[:most]
        for row in shown:
            row["person"] = names.get(row["person"], "")
            row["messages"] = _turns(session, row["messages"])
    if not found[most:]:
        return shown, None
    microseconds = (shown[-1]["created"] - _EPOCH) // timedelta(microseconds=1)
    return shown, f"{microseconds}.{shown[-1]['id']}"


def _read(before: str) -> _End:
    microseconds, _, row = before.partition(".")
    kind, _, number = row.partition("-")
    try:
        if kind not in _KINDS:
            raise ValueError(kind)
        return _End(_EPOCH + timedelta(microseconds=int(microseconds)), kind, int(number))
    except (ValueError, OverflowError):
        raise UserError(
            f"before = {before!r}: no page ends there", "take next of the last page"
        ) from None


def _end_of(row: Row) -> _End:
    return _End(row["created"], row["kind"], int(row["id"].rpartition("-")[2]))


def _page(query: Query, kind: str, created: Any, number: Any, end: _End | None, most: int) -> Query:
    """The first rows of one kind after ``end``, in the order of `_End`."""
    if end is not None:
        same_time = and_(created == end.created, number < end.number)
        if kind < end.kind:
            query = query.where(created <= end.created)
        elif kind > end.kind:
            query = query.where(created < end.created)
        else:
            query = query.where(or_(created < end.created, same_time))
    return query.order_by(created.desc(), number.desc()).limit(most)


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


def _thumbs(session: Session, name: str, end: _End | None, most: int) -> Iterator[Row]:
    query = select(Rating, Message).join(Message, Rating.message_id == Message.id)
    query = query.where(_by(Message.model, name))
    query = _page(query, "thumb", Rating.created, Rating.id, end, most)
    for thumb, answer in session.execute(query):
        verdict = "up" if thumb.value > 0 else "down"
        about = {"reasons": thumb.reasons, "comment": thumb.comment}
        yield _row(
            "thumb", thumb, answer.model, answer, response=answer.content, verdict=verdict, **about
        )


def _better(session: Session, name: str, end: _End | None, most: int) -> Iterator[Row]:
    query = select(BetterAnswer, Message).join(Message, BetterAnswer.message_id == Message.id)
    query = query.where(_by(Message.model, name))
    query = _page(query, "better_answer", BetterAnswer.created, BetterAnswer.id, end, most)
    for better, answer in session.execute(query):
        yield _row(
            "better_answer",
            better,
            answer.model,
            answer,
            response=answer.content,
            verdict="better",
            better=better.content,
        )


def _compared(session: Session, name: str, end: _End | None, most: int) -> Iterator[Row]:
    left, right = aliased(Message), aliased(Message)
    query = (
        select(Comparison, left, right)
        .join(left, Comparison.left_id == left.id)
        .join(right, Comparison.right_id == right.id)
        .where(or_(_by(left.model, name), _by(right.model, name)))
    )
    query = _page(query, "comparison", Comparison.created, Comparison.id, end, most)
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


def _ranked(kind: str, session: Session, name: str, end: _End | None, most: int) -> Iterator[Row]:
    """Rankings, or ratings, of the labelling queue."""
    models = cast(Task.models, String)
    query = (
        select(Assignment, Task)
        .join(Task, Assignment.task_id == Task.id)
        .where(
            Assignment.state == "done",
            Task.gold.is_(None),
            Task.kind == kind,
            or_(
                models.contains(f'"{name}"', autoescape=True),
                models.contains(f'"{name}@', autoescape=True),
            ),
        )
    )
    query = _page(query, kind, Assignment.finished, Assignment.id, end, most)
    for done, task in session.execute(query):
        yield _row(
            kind,
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


_KINDS: dict[str, Callable[[Session, str, _End | None, int], Iterator[Row]]] = {
    "thumb": _thumbs,
    "better_answer": _better,
    "comparison": _compared,
    "rating": partial(_ranked, "rating"),
    "ranking": partial(_ranked, "ranking"),
}
