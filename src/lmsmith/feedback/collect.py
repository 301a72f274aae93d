"""Everything that people judged, read in a few queries: what a new version may learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.corpus.judgements import Collected, Judgement, Kind
from lmsmith.feedback.paths import Paths
from lmsmith.feedback.people import IMPORTER
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import (
    Assignment,
    BetterAnswer,
    Comparison,
    Person,
    RankedAnswers,
    Rating,
    Task,
    utc,
)
from lmsmith.statistics.agreement import pairs_of

_RANKS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "both_bad": [1, 1]}


def collect(store: Store) -> Collected:
    """Read all judgements of a database."""
    with store.session() as session:
        names = {row[0]: row[1] for row in session.execute(select(Person.id, Person.name))}
        importer = next((key for key, name in names.items() if name == IMPORTER), None)
        messages = Paths(session, importer)
        found = [
            *_of_answers(session, messages),
            *_of_queue(session, messages, importer),
            *_imported(session, importer),
            *_prompts(messages),
        ]
        reliability = _reliability(session)
    siblings: dict[tuple[int | None, str], int] = defaultdict(int)
    for each in messages.values():
        siblings[each.parent, each.role] += each.parent is not None
    return Collected(
        found,
        reliability,
        sum(
            count - 1 for (_, role), count in siblings.items() if role == "assistant" and count > 1
        ),
        sum(count - 1 for (_, role), count in siblings.items() if role == "user" and count > 1),
        names,
    )


def _seconds(moment: datetime) -> float:
    return utc(moment).timestamp()


def _of_answers(session: Session, messages: Paths) -> Iterator[Judgement]:
    """Thumbs, better answers and comparisons, which people make in their own conversations.

    A server writes meanwhile: judgements of answers that came after the messages were read are left
    for the next time.
    """
    for pair in session.scalars(select(Comparison).order_by(Comparison.id)):
        if pair.left_id not in messages or pair.right_id not in messages:
            continue
        left, right = messages[pair.left_id], messages[pair.right_id]
        if (prompt := messages.prompt(left.parent)) is None:
            continue
        yield Judgement(
            f"comparison-{pair.id}",
            "comparison",
            prompt,
            [left.content, right.content],
            _RANKS[pair.verdict],
            pair.person_id,
            left.person,
            [left.model, right.model],
            _seconds(pair.created),
        )
    for better in session.scalars(select(BetterAnswer).order_by(BetterAnswer.id)):
        answer = messages.get(better.message_id)
        if answer is None or (prompt := messages.prompt(answer.parent)) is None:
            continue
        yield Judgement(
            f"better-{better.id}",
            "better_answer",
            prompt,
            [better.content, answer.content],
            [1, 2],
            better.person_id,
            answer.person,
            ["", answer.model],
            _seconds(better.created),
        )
    for thumb in session.scalars(select(Rating).order_by(Rating.id)):
        answer = messages.get(thumb.message_id)
        if answer is None or (prompt := messages.prompt(answer.parent)) is None:
            continue
        yield Judgement(
            f"thumb-{thumb.id}",
            "thumb",
            prompt,
            [answer.content],
            [1 if thumb.value > 0 else 2],
            thumb.person_id,
            answer.person,
            [answer.model],
            _seconds(thumb.created),
        )


def _of_queue(session: Session, messages: Paths, importer: str | None) -> Iterator[Judgement]:
    """Demonstrations and rankings of labelers; scores put nothing in an order. Demonstrations of
    the importer are nobody's."""
    query = (
        select(Assignment, Task)
        .join(Task, Assignment.task_id == Task.id)
        .where(Assignment.state == "done", Task.gold.is_(None), Task.kind != "rating")
        .order_by(Assignment.id)
    )
    for done, task in session.execute(query):
        kind: Kind = "ranking"
        responses, ranks = task.responses, done.answer.get("ranks", [])
        if task.kind == "demonstration":
            kind, responses, ranks = "demonstration", [done.answer["content"]], [1]
        asked = messages.get(task.message_id) if task.message_id is not None else None
        yield Judgement(
            f"labelled-{done.id}",
            kind,
            task.prompt,
            responses,
            ranks,
            "" if done.person_id == importer else done.person_id,
            asked.person if asked else "",
            task.models if kind == "ranking" else [],
            _seconds(done.finished or done.started),
        )


def _imported(session: Session, importer: str | None) -> Iterator[Judgement]:
    """Rankings that were made elsewhere; those of the importer are nobody's."""
    for each in session.scalars(select(RankedAnswers).order_by(RankedAnswers.id)):
        person = "" if each.person_id == importer else each.person_id
        yield Judgement(
            f"ranking-{each.id}",
            "ranking",
            each.prompt,
            each.responses,
            each.ranks,
            person,
            "",
            each.models,
            _seconds(each.created),
        )


def _prompts(messages: Paths) -> Iterator[Judgement]:
    """What people sent: the last message of theirs on each branch, with what went before."""
    continued: set[int | None] = set()
    for each in messages.values():
        if each.role == "user" and each.parent is not None:
            before = messages[each.parent]
            continued.add(each.parent if before.role == "user" else before.parent)
    for number, each in messages.items():
        if each.role != "user" or number in continued:
            continue
        if (prompt := messages.prompt(number)) is not None:
            yield Judgement(
                f"prompt-{number}",
                "prompt",
                prompt,
                asker=each.person,
                created=_seconds(each.created),
            )


def _reliability(session: Session) -> dict[str, tuple[float, float]]:
    """How labelers ordered the pairs of gold rankings that are no tie."""
    query = (
        select(Assignment.person_id, Assignment.answer, Task.gold)
        .join(Task, Assignment.task_id == Task.id)
        .where(Assignment.state == "done", Task.gold.is_not(None), Task.kind == "ranking")
    )
    found: dict[str, tuple[float, float]] = {}
    for person, answer, gold in session.execute(query):
        right, asked = _gold_pairs(gold, answer)
        before = found.get(person, (0.0, 0.0))
        found[person] = before[0] + right, before[1] + asked
    return found


def _gold_pairs(gold: dict[str, Any], answer: dict[str, Any]) -> tuple[float, float]:
    true, said = pairs_of(gold["ranks"]), pairs_of(answer["ranks"])
    decided = true != 0
    return float((1 - abs(true - said)[decided] / 2).sum()), float(decided.sum())
