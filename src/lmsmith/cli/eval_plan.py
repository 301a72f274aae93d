"""What ``lmsmith eval`` is to measure: tasks with their settings, and where files go."""

from __future__ import annotations

from collections.abc import Sequence
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
    named: dict[str, TaskSpec] = {}
    for word, counts in dict.fromkeys(asked):
        for task in find_tasks([word], run_python=True):
            if named.setdefault(task.name, task) != task:
                problem = f"{word}: another task has the name {task.name}"
                raise UserError(problem, "rename one of the two")
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


def with_raters(plan: Plan, classifier: str, judge: str, *, compares: bool = False) -> Plan:
    """The plan with what rates its tasks' texts.

    Raises:
        UserError: ``classifier`` is not a task and a label, or several models are compared and
            each would rate its own texts.
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
        rated = task.kind == "rated"
        by_model = rated and (rating.by == "model" or bool(rating.classifier))
        if judge and by_model:
            rating = replace(rating, grader=judge)
        if compares and by_model and not rating.grader:
            raise UserError(
                f"task {task.name}: each model would rate its own texts",
                "name one that rates them all: --judge MODEL",
            )
        changed.append((title, replace(task, rating=rating) if rated else task, setting))
    return changed


def check_seed(seed: int) -> None:
    """Refuse a number that no generator takes."""
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more", "e.g. --seed 1")


def models_to_measure(
    model: str, compare: Sequence[str], stages: bool
) -> tuple[list[str], list[tuple[int, int]]]:
    """The models in order, the page's own last, and which pairs are compared: (before, after).

    Stages are compared each with the one before it; others each with the model.

    Raises:
        UserError: one is named twice, or the run has no two stages that write.
    """
    if stages and compare:
        raise UserError("--stages and --compare: not both", "name the stages by --compare instead")
    words = stages_of(model) if stages else [*compare, model]
    names = [folder_name(word) for word in words]
    twice = next((word for word in words if names.count(folder_name(word)) > 1), None)
    if twice is not None:
        raise UserError(f"--compare {twice}: the same model twice", "name another")
    last = len(words) - 1
    return words, [(n, n + 1 if stages else last) for n in range(last)]


def stages_of(run: str) -> list[str]:
    """The folders of a run's stages that made a model which writes, the first one first.

    Raises:
        UserError: there are not two of them.
    """
    from lmsmith.catalogue.resolving import WRITING_STAGES

    found = [
        str(Path(run) / stage)
        for stage in reversed(WRITING_STAGES)
        if (Path(run) / stage / "model" / "config.json").is_file()
    ]
    if len(found) < 2:
        problem = f"{run}: no run with two stages that write"
        raise UserError(problem, "name a run's folder, such as runs/quickstart --stages")
    return found


def places_of(words: Sequence[str], folder: Path | None) -> list[Path]:
    """Where each model's results go: evals/MODEL, or the folder for the last one."""
    if folder is None:
        return [Path("evals") / folder_name(word) for word in words]
    beside = [folder.with_name(f"{folder.name}-{folder_name(word)}") for word in words[:-1]]
    return [*beside, folder]


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
