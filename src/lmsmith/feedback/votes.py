"""People's blind votes between a candidate and the promoted version of a model."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import aliased

from lmsmith.core.files import fingerprint
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, Comparison, Message, Task, utc
from lmsmith.statistics.sequential import Decision, SequentialTest, decide


@dataclass(frozen=True)
class Votes:
    """The votes on a candidate, one for each person and prompt.

    Attributes:
        outcomes: 1 for the candidate, 0 for the promoted version, ½ for a tie, in their order.
        people: how many voted.
        repeated: votes that count no more, since the person has voted on the prompt before.
        first: share of the votes in which the candidate was shown first.
    """

    outcomes: tuple[float, ...]
    people: int
    repeated: int
    first: float

    def decision(self, test: SequentialTest) -> Decision:
        """The state of the test."""
        return decide(self.outcomes, test)


def has_voted(store: Store, person: str, prompt: int, versions: tuple[str, str]) -> bool:
    """Whether a person has compared answers of these two versions to a message."""
    left, right = aliased(Message), aliased(Message)
    query = (
        select(Comparison.id)
        .join(left, Comparison.left_id == left.id)
        .join(right, Comparison.right_id == right.id)
        .where(
            Comparison.person_id == person,
            left.parent_id == prompt,
            left.model.in_(versions),
            right.model.in_(versions),
            left.model != right.model,
        )
    )
    with store.session() as session:
        return session.scalar(query.limit(1)) is not None


def compared_versions(store: Store, left: int, right: int) -> tuple[str, str]:
    """The authors of two messages, as they are recorded; empty for one that is gone."""
    with store.session() as session:
        one, other = session.get(Message, left), session.get(Message, right)
        return one.model if one else "", other.model if other else ""


def votes_on(store: Store, candidate: str, current: str) -> Votes:
    """The votes of the chat page and of the labelling queue.

    Args:
        store: the database.
        candidate, current: versions, such as ``ours@2``, as messages and tasks record them.
    """
    found: list[tuple[float, str, str, float, bool]] = []
    left, right = aliased(Message), aliased(Message)
    both = or_(
        and_(left.model == candidate, right.model == current),
        and_(left.model == current, right.model == candidate),
    )
    shares = {"left": 1.0, "right": 0.0}
    with store.session() as session:
        compared = (
            select(Comparison, left.model, left.parent_id)
            .join(left, Comparison.left_id == left.id)
            .join(right, Comparison.right_id == right.id)
            .where(both)
            .order_by(Comparison.id)
        )
        for pair, model, asked in session.execute(compared):
            first = model == candidate
            won = shares.get(pair.verdict, 0.5)
            share = won if first else 1 - won
            seconds = utc(pair.created).timestamp()
            found.append((seconds, pair.person_id, f"message {asked}", share, first))
        ranked = (
            select(Assignment, Task)
            .join(Task, Assignment.task_id == Task.id)
            .where(Assignment.state == "done", Task.kind == "ranking", Task.gold.is_(None))
            .order_by(Assignment.id)
        )
        for done, task in session.execute(ranked):
            if not {candidate, current} <= set(task.models):
                continue
            ours, theirs = task.models.index(candidate), task.models.index(current)
            ranks = done.answer["ranks"]
            share = 0.5 if ranks[ours] == ranks[theirs] else float(ranks[ours] < ranks[theirs])
            prompt = f"message {task.message_id}" if task.message_id else fingerprint(task.prompt)
            first = done.shown.index(ours) < done.shown.index(theirs)
            seconds = utc(done.finished or done.started).timestamp()
            found.append((seconds, done.person_id, prompt, share, first))
    found.sort(key=lambda vote: vote[0])
    kept: dict[tuple[str, str], tuple[float, bool]] = {}
    for _, person, prompt, share, first in found:
        kept.setdefault((person, prompt), (share, first))
    return Votes(
        tuple(share for share, _ in kept.values()),
        len({person for person, _ in kept}),
        len(found) - len(kept),
        sum(first for _, first in kept.values()) / max(1, len(kept)),
    )
