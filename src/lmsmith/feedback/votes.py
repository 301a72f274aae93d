"""People's blind votes between a candidate and the promoted version of a model."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from lmsmith.core.files import fingerprint
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, Comparison, Message, Person, Task, utc
from lmsmith.statistics.sequential import Decision, SequentialTest, decide

PERSON_SHARE = 0.3
"""Greatest share of the votes that one person can have; with few people, an equal share."""
FREE_VOTES = 5
"""So many votes of a person count in any case; they alone decide nothing."""


@dataclass(frozen=True)
class Votes:
    """The votes on a candidate, one for each person and prompt.

    Attributes:
        outcomes: 1 for the candidate, 0 for the promoted version, ½ for a tie, in the order in
            which they count.
        people: how many voted.
        waiting: votes above one person's share, which count when others have voted.
        repeated: votes that count no more, since the person has voted on the prompt before.
        first: share of the votes in which the candidate was shown first.
    """

    outcomes: tuple[float, ...]
    people: int
    waiting: int
    repeated: int
    first: float

    def counts(self) -> dict[str, float]:
        """People, votes that do not count, and the share of those shown first."""
        names = ("people", "waiting", "repeated", "first")
        return {name: getattr(self, name) for name in names}

    def decision(self, test: SequentialTest) -> Decision:
        """The state of the test."""
        return decide(self.outcomes, test)


NO_VOTES = Votes((), 0, 0, 0, 0.0)


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
    return votes_among(store, [candidate, current]).get((candidate, current), NO_VOTES)


def votes_among(store: Store, versions: Sequence[str]) -> dict[tuple[str, str], Votes]:
    """The votes between each two of several versions that have any; read once for all.

    Args:
        store: the database.
        versions: as messages and tasks record them; the earlier of two is their candidate.
    """
    places = {version: place for place, version in enumerate(versions)}
    found: dict[tuple[str, str], list[_Vote]] = {}
    left, right = aliased(Message), aliased(Message)
    shares = {"left": 1.0, "right": 0.0}
    with store.session() as session:
        accounts = session.scalar(select(func.count()).select_from(Person)) or 1
        compared = (
            select(Comparison, left.model, right.model, left.parent_id)
            .join(left, Comparison.left_id == left.id)
            .join(right, Comparison.right_id == right.id)
            .where(left.model.in_(places), right.model.in_(places), left.model != right.model)
            .order_by(Comparison.id)
        )
        moment = datetime.min.replace(tzinfo=UTC)
        for pair, one, other, asked in session.execute(compared):
            moment = max(moment, utc(pair.created))  # a clock may jump back; numbers do not
            first = places[one] < places[other]
            won = shares.get(pair.verdict, 0.5)
            share = won if first else 1 - won
            vote = _Vote(moment, pair.person_id, f"message {asked}", share, first)
            found.setdefault((one, other) if first else (other, one), []).append(vote)
        ranked = (
            select(Assignment, Task)
            .join(Task, Assignment.task_id == Task.id)
            .where(Assignment.state == "done", Task.kind == "ranking", Task.gold.is_(None))
            .order_by(Assignment.id)
        )
        for done, task in session.execute(ranked):
            there = sorted(places.keys() & set(task.models), key=places.__getitem__)
            for candidate, current in itertools.combinations(there, 2):
                vote = _ranked(done, task, candidate, current)
                found.setdefault((candidate, current), []).append(vote)
    return {pair: _counted(votes, accounts) for pair, votes in found.items()}


@dataclass(frozen=True)
class _Vote:
    moment: datetime
    person: str
    prompt: str
    share: float
    first: bool  # the candidate was shown first


def _ranked(done: Assignment, task: Task, candidate: str, current: str) -> _Vote:
    """What a ranking says of two of its models."""
    ours, theirs = task.models.index(candidate), task.models.index(current)
    ranks = done.answer["ranks"]
    share = 0.5 if ranks[ours] == ranks[theirs] else float(ranks[ours] < ranks[theirs])
    prompt = f"message {task.message_id}" if task.message_id else fingerprint(task.prompt)
    first = done.shown.index(ours) < done.shown.index(theirs)
    return _Vote(utc(done.finished or done.started), done.person_id, prompt, share, first)


def _counted(votes: list[_Vote], accounts: int) -> Votes:
    """One vote for each person and prompt, the first; of nobody more than `PERSON_SHARE`.

    Of two or three who vote everybody has an equal share; one of several accounts has half.
    Which votes count, and in which order, follows from who voted and when, never from what they
    voted for: so the test stays one that may be looked at after every vote.
    """
    kept: dict[tuple[str, str], _Vote] = {}
    for vote in sorted(votes, key=lambda vote: vote.moment):
        kept.setdefault((vote.person, vote.prompt), vote)
    counted: list[_Vote] = []
    of: Counter[str] = Counter()
    waiting: dict[str, deque[_Vote]] = {}

    def next_one() -> str | None:
        """The person whose vote comes next: of those with room, the one who has waited longest."""
        share = max(PERSON_SHARE, 1 / max(len(waiting), min(accounts, 2)))
        room = max(FREE_VOTES, math.ceil(share * (len(counted) + 1)))
        ready = [name for name, queue in waiting.items() if queue and of[name] < room]
        return min(ready, key=lambda name: waiting[name][0].moment, default=None)

    for vote in kept.values():
        waiting.setdefault(vote.person, deque()).append(vote)
        while (person := next_one()) is not None:
            counted.append(waiting[person].popleft())
            of[person] += 1
    return Votes(
        tuple(vote.share for vote in counted),
        len({person for person, _ in kept}),
        len(kept) - len(counted),
        len(votes) - len(kept),
        sum(vote.first for vote in counted) / max(1, len(counted)),
    )
