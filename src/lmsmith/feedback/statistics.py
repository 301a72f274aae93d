"""What has come of labelling: how much is done, how far labelers agree, which model is best."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import KINDS, Assignment, Comparison, Message, Person, Task, utc
from lmsmith.statistics import agreement
from lmsmith.statistics.agreement import pairs_of
from lmsmith.statistics.bootstrap import Interval
from lmsmith.statistics.bradley_terry import Outcome, leaderboard

_SHARES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True)
class _Work:
    """A labeler's answer to a task, or their skipping it."""

    labeler: str
    task: Task
    assignment: Assignment

    @property
    def seconds(self) -> float:
        """From the task's being handed out to the answer."""
        assert self.assignment.finished is not None
        return (utc(self.assignment.finished) - utc(self.assignment.started)).total_seconds()


def statistics_of(store: Store, seed: int = 0) -> dict[str, Any]:
    """Everything, as one JSON object.

    Gold tasks measure labelers and are left out of agreement and of the leaderboard. An interval
    is ``{"value", "low", "high"}`` at 95 %, or null where nothing is known.
    """
    work = _finished(store)
    real = [each for each in work if each.assignment.state == "done" and each.task.gold is None]
    rankings, scores = _by_task(real, "ranking", "ranks"), _by_task(real, "rating", "score")
    several = [each for each in rankings if len(each) >= 2]
    return {
        "tasks": _tasks(store),
        "labelers": _labelers(work),
        "agreement": {
            "ranking": {
                "tasks": len(several),
                "pairwise": _shown(agreement.pairwise_agreement(several, seed)),
                "tau_b": _shown(agreement.mean_tau_b(several, seed)),
                "alpha": _shown(
                    agreement.krippendorff_alpha(
                        [agreement.preferences(each) for each in several], "ordinal", seed
                    )
                ),
            },
            "rating": {
                "tasks": sum(len(each) >= 2 for each in scores),
                "alpha": _shown(
                    agreement.krippendorff_alpha([[each] for each in scores], "interval", seed)
                ),
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
    """By kind: how many there are, how many have all answers that are wanted, how many are gold."""
    found = {kind: {"tasks": 0, "complete": 0, "gold": 0} for kind in KINDS}
    done: dict[int, int] = defaultdict(int)
    with store.session() as session:
        query = select(Assignment.task_id).where(Assignment.state == "done")
        for task in session.scalars(query):
            done[task] += 1
        columns = select(Task.id, Task.kind, Task.overlap, Task.gold.is_not(None))
        for number, kind, overlap, is_gold in session.execute(columns):
            found[kind]["gold" if is_gold else "tasks"] += 1
            found[kind]["complete"] += not is_gold and done[number] >= overlap
    return found


def _labelers(work: list[_Work]) -> list[dict[str, Any]]:
    """Each labeler's numbers, and how near they came to the gold answers."""
    by_name: dict[str, list[_Work]] = defaultdict(list)
    for each in work:
        by_name[each.labeler].append(each)
    return [
        {
            "name": name,
            **{
                kind: sum(
                    each.task.kind == kind and each.assignment.state == "done" for each in theirs
                )
                for kind in KINDS
            },
            "skipped": sum(each.assignment.state == "skipped" for each in theirs),
            "seconds": _median(theirs),
            "gold": _gold(theirs),
        }
        for name, theirs in sorted(by_name.items())
    ]


def _median(theirs: list[_Work]) -> float | None:
    """Half of the answers took no longer."""
    seconds = [each.seconds for each in theirs if each.assignment.state == "done"]
    return statistics.median(seconds) if seconds else None


def _gold(theirs: list[_Work]) -> dict[str, Any]:
    """How many gold tasks, agreement with their rankings, mean distance from their scores."""
    done = [each for each in theirs if each.assignment.state == "done" and each.task.gold]
    rankings = [
        [each.task.gold["ranks"], each.assignment.answer["ranks"]]
        for each in done
        if each.task.gold and each.task.kind == "ranking"
    ]
    distances = [
        abs(each.task.gold["score"] - each.assignment.answer["score"])
        for each in done
        if each.task.gold and each.task.kind == "rating"
    ]
    return {
        "tasks": len(done),
        "pairwise": _shown(agreement.pairwise_agreement(rankings)),
        "distance": statistics.mean(distances) if distances else None,
    }


def _by_task(work: list[_Work], kind: str, name: str) -> list[list[Any]]:
    """What the labelers of each task said."""
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
            models = each.task.models
            pairs = [(i, j) for i in range(len(models)) for j in range(i + 1, len(models))]
            signs = pairs_of(each.assignment.answer["ranks"]).tolist()
            for (i, j), sign in zip(pairs, signs, strict=True):
                found[each.task.id].append((models[i], models[j], (1 + sign) / 2))
    with store.session() as session:
        for pair in session.scalars(select(Comparison).order_by(Comparison.id)):
            left, right = (session.get_one(Message, x) for x in (pair.left_id, pair.right_id))
            if left.model and right.model:
                outcome = (left.model, right.model, _SHARES[pair.verdict])
                found[f"comparison {left.parent_id}"].append(outcome)
    return list(found.values())


def _ratings(work: list[_Work]) -> list[dict[str, Any]]:
    """Each model's ratings: how many, how often which score, and how often which flag."""
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
