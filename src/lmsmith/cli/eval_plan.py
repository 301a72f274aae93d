"""What ``lmsmith eval`` is to measure: tasks with their settings, and where files go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.core.errors import UserError

if TYPE_CHECKING:
    from lmsmith.evaluation.suite import Setting
    from lmsmith.evaluation.tasks.spec import TaskSpec

Plan = list[tuple[str, "TaskSpec", "Setting"]]
"""(label, task, setting) of everything that is to be measured."""


def make_plan(
    tasks: str, suite: str, shots: str, fixed: bool, limit: int | None, seed: int, measure: str
) -> Plan:
    """(label, task, setting) of everything that is to be measured.

    Raises:
        UserError: nothing, or something unknown, was named.
    """
    from dataclasses import replace

    from lmsmith.evaluation.suite import Setting
    from lmsmith.evaluation.tasks.shipped import find_tasks, suites

    asked = [(word, shots) for word in split_words(tasks)]
    if suite:
        known = suites()
        if suite not in known:
            raise UserError(f"--suite {suite}: there is none", f"the suites: {', '.join(known)}")
        asked += [(task, shots or own) for task, own in known[suite]]
    if not asked:
        raise UserError("no tasks", "name some: --tasks lambada,copa, or --suite gpt3")
    plan: Plan = []
    for word, counts in asked:
        for task in find_tasks([word]):
            if measure:
                task = replace(task, headline=measure)
                problems = task.check()
                if problems:
                    raise UserError(f"--measure {measure}: task {task.name} has none such")
            for count in shot_counts(counts) or [task.shots]:
                setting = Setting(task.shown_shots(count), fixed, limit, seed)
                label = f"{task.name} {setting.label}-shot"
                if all(label != other for other, _, _ in plan):
                    plan.append((label, task, setting))
    return plan


def with_raters(plan: Plan, classifier: str, judge: str) -> Plan:
    """The plan with what rates its tasks' texts.

    Raises:
        UserError: ``classifier`` is not a task and a label.
    """
    from dataclasses import replace

    name, _, label = classifier.partition("=")
    if classifier and not (name and label):
        raise UserError(f"--classifier {classifier}: no label", "write it as TASK=LABEL")
    changed: Plan = []
    for title, task, setting in plan:
        rating = task.rating
        if rating.by == "toxicity" and name:
            rating = replace(rating, classifier=name, label=label)
        if judge and (rating.by == "model" or rating.classifier):
            rating = replace(rating, grader=judge)
        rated = task.kind == "rated"
        changed.append((title, replace(task, rating=rating) if rated else task, setting))
    return changed


def split_words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shot_counts(text: str) -> list[int | None]:
    """The numbers of ``--shots``; None for ``fit``."""
    counts: list[int | None] = []
    for word in split_words(text):
        if word != "fit" and not word.isdecimal():
            raise UserError(f"--shots {word}: neither a number nor fit", "e.g. --shots 0,1,4")
        counts.append(None if word == "fit" else int(word))
    return counts


def folder_name(model: str) -> str:
    """A folder's name from a model's: ``runs/small`` becomes ``runs--small``."""
    kept = [part for part in Path(model).parts if part not in ("/", "..", ".")]
    return "--".join(kept) or "model"
