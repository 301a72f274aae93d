"""From the database to the files that `lmsmith run` reads: conversations and rankings.

A person's rows are all on one side of the held-out split, and labels of a logged prompt are on the
side of the person who asked. Rows of files are nobody's: those that begin alike are on one side,
whoever judged them, and on the side of the people who asked the same, where these are on one
(docs/decisions/011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus import rows
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.feedback.people import IMPORTER
from lmsmith.feedback.store import Store, as_turns, path_to
from lmsmith.feedback.tables import (
    Assignment,
    BetterAnswer,
    Comparison,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
    Task,
)

FILES = ("conversations", "rankings", "ratings")
HELD_OUT = "held_out"

_Row = tuple[str | None, str, dict[str, Any]]
"""The person who asked, None if the row came from a file; the file; the row."""

_RANKS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "both_bad": [1, 1]}


def export(
    store: Store, folder: Path, *, held_out: float = 0.0, with_liked: bool = False
) -> dict[str, int]:
    """Write ``conversations.jsonl``, ``rankings.jsonl`` and ``ratings.jsonl``.

    Conversations are demonstrations: labelers', those that end with somebody's better answer, and
    with ``with_liked`` also those whose last answer was thumbed up. Rankings are labelers',
    comparisons (both bad is a tie), and better answers over what they improve. Ratings, thumbs and
    labelers' scores, are for people to look at: no stage learns from them. Gold tasks measure
    labelers and are in no file.

    Args:
        folder: is made if it is missing; files in it are replaced. Files without a row are written
            too, so that a recipe that names them can always be read.
        held_out: share of the people, and of what came from files, in ``held_out/``.
        with_liked: whether answers that were thumbed up are demonstrations.

    Returns:
        File → rows.

    Raises:
        UserError: the share is no share, or a file cannot be written.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out = {held_out}: expected a share of the people, 0 to below 1")
    found: dict[str, list[dict[str, Any]]] = {
        f"{part}{name}": [] for part in ("", f"{HELD_OUT}/") for name in FILES
    }
    with store.session() as session:
        importer = session.scalar(select(Person.id).where(Person.name == IMPORTER))
        rows = []
        for person, file, row in _all(session, with_liked):
            opening = opening_key(row.get("messages") or row["prompt"])
            rows.append((None if person == importer else person, opening, file, row))
    sides: dict[str, set[str]] = defaultdict(set)
    for person, opening, _, _ in rows:
        if person is not None:
            sides[opening].add(_part(person, held_out))
    for person, opening, file, row in rows:
        part = _part(person or opening, held_out)
        if person is None and len(sides[opening]) == 1:
            (part,) = sides[opening]
        found[f"{part}{file}"].append(row)
    counts = {}
    for name, content in found.items():
        path = folder / f"{name}.jsonl"
        if held_out or path.exists() or not name.startswith(HELD_OUT):
            write_jsonl(path, content)
        counts[f"{name}.jsonl"] = len(content)
    return counts


def _part(name: str, held_out: float) -> str:
    return f"{HELD_OUT}/" if split_of(name, {HELD_OUT: held_out}) else ""


def _all(session: Session, with_liked: bool) -> Iterator[_Row]:
    """All rows, in a fixed order."""
    for person in session.scalars(select(Person.id).order_by(Person.id)):
        for row in _demonstrations(session, person, with_liked):
            yield person, "conversations", row
        for row in _compared(session, person):
            yield person, "rankings", row
        for row in _ratings(session, person):
            yield person, "ratings", row
    yield from _labelled(session)
    for each in session.scalars(select(RankedAnswers).order_by(RankedAnswers.id)):
        name, ranks = f"ranking-{each.id}", each.ranks
        row = _ranking(name, each.prompt, each.responses, ranks, each.person_id)
        yield None, "rankings", row


def _labelled(session: Session) -> Iterator[_Row]:
    """Labels of the queue."""
    query = (
        select(Assignment, Task, Conversation.person_id)
        .join(Task, Assignment.task_id == Task.id)
        .outerjoin(Message, Task.message_id == Message.id)
        .outerjoin(Conversation, Message.conversation_id == Conversation.id)
        .where(Assignment.state == "done", Task.gold.is_(None))
        .order_by(Assignment.id)
    )
    for done, task, asker in session.execute(query):
        answer = done.answer
        if task.kind == "demonstration":
            messages = [*task.prompt, {"role": "assistant", "content": answer["content"]}]
            name = f"demonstration-{done.person_id}-{done.id}"
            yield asker, "conversations", rows.Conversation(name, messages).row()
        elif task.kind == "ranking":
            name, ranks = f"labelled-{done.id}", answer["ranks"]
            row = _ranking(name, task.prompt, task.responses, ranks, done.person_id)
            yield asker, "rankings", row
        else:
            messages = [*task.prompt, {"role": "assistant", "content": task.responses[0]}]
            model = task.models[0] if task.models else ""
            row = {"messages": messages, "model": model, "labeler": done.person_id}
            yield asker, "ratings", row | {"scale": "1-7", **answer}


def _judged(session: Session, table: Any, person: str) -> Iterator[tuple[Any, list[Message]]]:
    """A person's judgements, each with the path to the answer that is judged."""
    for each in session.scalars(select(table).where(table.person_id == person).order_by(table.id)):
        yield each, path_to(session, session.get_one(Message, each.message_id))


def _demonstrations(session: Session, person: str, with_liked: bool) -> Iterator[dict[str, Any]]:
    better = set()
    for each, path in _judged(session, BetterAnswer, person):
        better.add(each.message_id)
        messages = [*as_turns(path[:-1]), {"role": "assistant", "content": each.content}]
        yield rows.Conversation(f"better-{person}-{each.id}", messages).row()
    if with_liked:
        for each, path in _judged(session, Rating, person):
            if each.value > 0 and each.message_id not in better:
                yield rows.Conversation(f"liked-{person}-{each.id}", as_turns(path)).row()


def _compared(session: Session, person: str) -> Iterator[dict[str, Any]]:
    """A person's comparisons and better answers, as rankings."""
    for pair in session.scalars(
        select(Comparison).where(Comparison.person_id == person).order_by(Comparison.id)
    ):
        left, right = (session.get_one(Message, side) for side in (pair.left_id, pair.right_id))
        prompt = as_turns(path_to(session, left)[:-1])
        texts = [left.content, right.content]
        yield _ranking(f"comparison-{pair.id}", prompt, texts, _RANKS[pair.verdict], person)
    for each, path in _judged(session, BetterAnswer, person):
        texts = [each.content, path[-1].content]
        if texts[0] != texts[1]:
            yield _ranking(f"better-{each.id}", as_turns(path[:-1]), texts, [1, 2], person)


def _ranking(
    name: str, prompt: list[dict[str, str]], responses: list[str], ranks: list[int], person: str
) -> dict[str, Any]:
    source = name.partition("-")[0]
    ranking = rows.Ranking(name, prompt, list(responses), list(ranks), person, f"feedback.{source}")
    return ranking.row()


def _ratings(session: Session, person: str) -> Iterator[dict[str, Any]]:
    for each, path in _judged(session, Rating, person):
        row = {"messages": as_turns(path), "model": path[-1].model, "labeler": person}
        rating = {"value": each.value, "reasons": each.reasons, "comment": each.comment}
        yield {**row, "scale": "thumbs", **rating}
