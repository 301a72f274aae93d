"""Results of labelling: progress, agreement of labelers, and which model is best."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import KINDS, Assignment, Comparison, Message, Person, Task, utc
from lmsmith.statistics import agreement
from lmsmith.statistics.agreement import pairs_of
from lmsmith.statistics.bradley_terry import Outcome, leaderboard
from lmsmith.statistics.intervals import Interval

_SHARES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True)
class _Work:
    """A task that a labeler has answered or skipped."""

    labeler: str
    task: Task
    assignment: Assignment

    @property
    def is_done(self) -> bool:
        return self.assignment.state == "done"

    @property
    def seconds(self) -> float:
        """From the task's start to the answer."""
        assert self.assignment.finished is not None
        return (utc(self.assignment.finished) - utc(self.assignment.started)).total_seconds()


def statistics_of(store: Store, seed: int = 0) -> dict[str, Any]:
    """Progress, labelers, agreement and models as one JSON object.

    Gold tasks measure labelers and are left out of agreement and of the leaderboard. An interval
    is ``{"value", "low", "high"}`` at 95 %, or null where nothing is known.
    """
    work = _finished(store)
    real = [each for each in work if each.is_done and each.task.gold is None]
    rankings, scores = _by_task(real, "ranking", "ranks"), _by_task(real, "rating", "score")
    several = [each for each in rankings if len(each) >= 2]
    preferences = [agreement.preferences(each) for each in several]
    alpha = agreement.krippendorff_alpha
    return {
        "tasks": _tasks(store),
        "labelers": _labelers(work),
        "agreement": {
            "ranking": {
                "tasks": len(several),
                "pairwise": _shown(agreement.pairwise_agreement(several, seed)),
                "tau_b": _shown(agreement.mean_tau_b(several, seed)),
                "alpha": _shown(alpha(preferences, "ordinal", seed)),
            },
            "rating": {
                "tasks": sum(len(each) >= 2 for each in scores),
                "alpha": _shown(alpha([[each] for each in scores], "interval", seed)),
            },
        },
        "leaderboard": [
            {
                "model": each.model,
                "strength": _shown(each.strength),
                "rate": _shown(each.rate),
                "comparisons": each.comparisons,
            }
            for each in leaderboard(_outcomes(store, real), seed)
        ],
        "ratings": _ratings(real),
    }


def _finished(store: Store) -> list[_Work]:
    with store.session() as session:
        query = (
            select(Person.name, Task, Assignment)
            .join(Assignment, Assignment.person_id == Person.id)
            .join(Task, Assignment.task_id == Task.id)
            .where(Assignment.state != "open")
            .order_by(Assignment.id)
        )
        return [_Work(*row) for row in session.execute(query)]


def _tasks(store: Store) -> dict[str, dict[str, int]]:
    """By kind: the number of tasks, of those with all wanted answers, and of gold tasks."""
    found = {kind: {"tasks": 0, "complete": 0, "gold": 0} for kind in KINDS}
    with store.session() as session:
        query = select(Assignment.task_id).where(Assignment.state == "done")
        done = Counter(session.scalars(query))
        columns = select(Task.id, Task.kind, Task.overlap, Task.gold.is_not(None))
        for number, kind, overlap, is_gold in session.execute(columns):
            found[kind]["gold" if is_gold else "tasks"] += 1
            found[kind]["complete"] += not is_gold and done[number] >= overlap
    return found


def _labelers(work: list[_Work]) -> list[dict[str, Any]]:
    """Each labeler's numbers, and the agreement with the gold answers."""
    by_name: dict[str, list[_Work]] = defaultdict(list)
    for each in work:
        by_name[each.labeler].append(each)
    found: list[dict[str, Any]] = []
    for name, theirs in sorted(by_name.items()):
        done = [each for each in theirs if each.is_done]
        counts = Counter(each.task.kind for each in done)
        seconds = [each.seconds for each in done]
        numbers = {
            "skipped": sum(each.assignment.state == "skipped" for each in theirs),
            "seconds": statistics.median(seconds) if seconds else None,
            "gold": _gold(done),
        }
        found.append({"name": name, **{kind: counts[kind] for kind in KINDS}, **numbers})
    return found


def _gold(done: list[_Work]) -> dict[str, Any]:
    """The number of gold tasks, agreement with their rankings, mean distance from their scores."""
    pairs = [(each.task, each.task.gold, each.assignment.answer) for each in done if each.task.gold]
    rankings = [
        [gold["ranks"], answer["ranks"]]
        for task, gold, answer in pairs
        if gold and task.kind == "ranking"
    ]
    distances = [
        abs(gold["score"] - answer["score"])
        for task, gold, answer in pairs
        if gold and task.kind == "rating"
    ]
    return {
        "tasks": len(pairs),
        "pairwise": _shown(agreement.pairwise_agreement(rankings)),
        "distance": statistics.mean(distances) if distances else None,
    }


def _by_task(work: list[_Work], kind: str, name: str) -> list[list[Any]]:
    """The labelers' answers to each task."""
    found: dict[int, list[Any]] = defaultdict(list)
    for each in work:
        if each.task.kind == kind:
            found[each.task.id].append(each.assignment.answer[name])
    return list(found.values())


def _outcomes(store: Store, work: list[_Work]) -> list[list[Outcome]]:
    """Models against each other: in rankings, and in people's blind comparisons."""
    found: dict[object, list[Outcome]] = defaultdict(list)
    for each in work:
        if each.task.kind == "ranking" and each.task.models:
            pairs = itertools.combinations(each.task.models, 2)
            signs = pairs_of(each.assignment.answer["ranks"]).tolist()
            for (one, other), sign in zip(pairs, signs, strict=True):
                found[each.task.id].append((one, other, (1 + sign) / 2))
    with store.session() as session:
        for pair in session.scalars(select(Comparison).order_by(Comparison.id)):
            left, right = (session.get_one(Message, x) for x in (pair.left_id, pair.right_id))
            if left.model and right.model:
                outcome = (left.model, right.model, _SHARES[pair.verdict])
                found[f"comparison {left.parent_id}"].append(outcome)
    return list(found.values())


def _ratings(work: list[_Work]) -> list[dict[str, Any]]:
    """Each model's ratings: their number, and the counts of scores and flags."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in work:
        if each.task.kind == "rating":
            found[each.task.models[0] if each.task.models else ""].append(each.assignment.answer)
    return [
        {
            "model": model,
            "count": len(said),
            "mean": statistics.mean(each["score"] for each in said),
            "scores": [sum(each["score"] == score for each in said) for score in range(1, 8)],
            "flags": {
                flag: sum(flag in each["flags"] for each in said)
                for flag in sorted({flag for each in said for flag in each["flags"]})
            },
        }
        for model, said in sorted(found.items())
    ]


def _shown(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {name: None if x != x else x for name, x in vars(interval).items()}
