"""In-context learning as an experiment: the same items with different examples in the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmsmith.comparison.run import TaskComparison, compare_rows
from lmsmith.core.errors import UserError
from lmsmith.core.progress import choose_progress
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.rows import ChoiceRow
from lmsmith.evaluation.run import (
    PlannedTask,
    TaskResult,
    check_limits,
    folder_name,
    model_to_evaluate,
    run_plan,
    shot_counts,
    with_measure,
)
from lmsmith.evaluation.tasks.data import read_data
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.shown_labels import ShownLabels, has_shared_labels
from lmsmith.evaluation.tasks.spec import Labels, TaskSetting, TaskSpec
from lmsmith.options import TaskOptions
from lmsmith.training.machine import ResolvedMachine

StudyKind = Literal["labels", "order", "shots"]

DEFAULT_SHOTS: Mapping[str, tuple[int, ...]] = {
    "labels": (16,),
    "order": (4,),
    "shots": (0, 1, 2, 4, 8, 16, 32),
}
"""Numbers of the papers; GPT-3's curve goes on to a hundred, which few contexts hold."""

LABELS: Mapping[Labels, str] = {
    "gold": "gold labels",
    "random": "random labels",
    "words": "random words as labels",
    "none": "inputs without labels",
    "renamed": "labels renamed",
}
NO_SHOTS = "no demonstrations"


@dataclass(frozen=True)
class Arm:
    """One variant of a task in a study.

    Attributes:
        name: the difference from the other arms.
        line: arms of one line are drawn as one; of ``shots``, with or without the instruction.
    """

    name: str
    task: TaskSpec
    setting: TaskSetting
    line: str = ""


@dataclass(frozen=True)
class ArmResult:
    """A model's result on an arm, and its comparison with the study's first arm."""

    arm: Arm
    result: TaskResult
    against_first: TaskComparison | None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json`` and results.json."""
        compared = self.against_first
        return {
            "arm": self.arm.name,
            "line": self.arm.line,
            "labels": self.arm.setting.labels,
            "order": self.arm.setting.order,
            **self.result.as_dict(),
            "difference": vars(compared.difference) if compared else None,
            "changed": len(compared.gained) + len(compared.lost) if compared else None,
        }


def plan_arms(
    kind: StudyKind,
    task: TaskSpec,
    shots: Sequence[int],
    orders: int,
    setting: TaskSetting,
    *,
    renames: bool = True,
) -> list[Arm]:
    """The arms of a task; the others are compared with the first.

    Args:
        shots: one number, but several for ``shots``.
        orders: permutations of ``order``; fewer where there are not so many.
        setting: common to all arms.
        renames: whether the task has labels that all items share.

    Raises:
        UserError: the task shows no examples, or the numbers do not fit this study.
    """
    if not task.shows_examples:
        problem = f"task {task.name}: of the kind {task.kind}, which shows no examples"
        raise UserError(problem, "name another")
    if kind == "shots":
        return _arms_of_shots(task, shots, setting)
    least = 1 if kind == "labels" else 2
    if len(shots) != 1 or shots[0] < least:
        said = ",".join(map(str, shots))
        problem = f"--shots {said}: a study of {kind} has one number, {least} or more"
        raise UserError(problem, "e.g. --shots 4")
    if kind == "labels":
        arms = _arms_of_labels(task, shots[0], setting)
        return [arm for arm in arms if renames or arm.setting.labels != "renamed"]
    if orders < 2:
        raise UserError(f"--orders {orders}: must be 2 or more", "e.g. --orders 24")
    if task.prompt.demonstrations:
        problem = f"task {task.name}: its demonstrations are written out in their order"
        raise UserError(problem, "use a task whose shots are drawn")
    common = replace(setting, shots=shots[0], fixed=True)
    count = min(orders, math.factorial(shots[0]))
    return [Arm(f"order {n + 1}", task, replace(common, order=n)) for n in range(count)]


def _arms_of_labels(task: TaskSpec, shots: int, setting: TaskSetting) -> list[Arm]:
    """Min et al. 2022: gold labels first, the others against them."""
    common = replace(setting, shots=shots)
    arms = [Arm(name, task, replace(common, labels=labels)) for labels, name in LABELS.items()]
    return [*arms, Arm(NO_SHOTS, task, replace(setting, shots=0))]


def _arms_of_shots(task: TaskSpec, shots: Sequence[int], setting: TaskSetting) -> list[Arm]:
    """Brown et al. 2020, figure 1.2: with the task's instruction, if it has one, and without."""
    lines = [("", task)]
    if task.prompt.instruction:
        bare = replace(task.prompt, instruction="")
        without = replace(task, name=f"{task.name}-bare", prompt=bare, published=())
        lines = [("with the instruction", task), ("without it", without)]
    return [
        Arm("1 shot" if count == 1 else f"{count} shots", each, replace(setting, shots=count), line)
        for line, each in lines
        for count in sorted(set(shots))
    ]


def compare_arms(arms: Sequence[Arm], results: Sequence[TaskResult]) -> list[ArmResult]:
    """Each arm's result, compared with the first arm's on the same items."""
    first, found = results[0].rows, [ArmResult(arms[0], results[0], None)]
    for arm, result in zip(arms[1:], results[1:], strict=True):
        measure, seed = arm.task.measure, arm.setting.seed
        compared = compare_rows(arm.name, measure, first, result.rows, seed)
        found.append(ArmResult(arm, result, compared))
    return found


@dataclass(frozen=True)
class Spread:
    """Statistics of a measure over orders of the shots (Lu et al. 2021, section 2).

    ``deviation`` is the sample's standard deviation; ``unsteady`` is the share of items that are
    right in some orders and wrong in others, None where items are neither.
    """

    lowest: float
    highest: float
    mean: float
    deviation: float
    unsteady: float | None


def spread(found: Sequence[ArmResult]) -> Spread:
    """Spread of an ``order`` study of one model."""
    measure = found[0].arm.task.measure
    values, unsteady = [each.result.headline.value for each in found], None
    if measure_of(measure).is_share:
        rows = [[row.value(measure) for row in each.result.rows] for each in found]
        by_order = np.array(rows, np.float64)
        if set(np.unique(by_order)) <= {0.0, 1.0}:
            unsteady = float((by_order.max(axis=0) != by_order.min(axis=0)).mean())
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return Spread(min(values), max(values), mean, deviation, unsteady)


def chance(found: Sequence[ArmResult]) -> float | None:
    """Accuracy of guessing among the choices; None where there are no choices."""
    rows = found[0].result.rows
    choices = [len(row.choices) for row in rows if isinstance(row, ChoiceRow)]
    return float(np.mean([1 / count for count in choices])) if choices else None


@dataclass(frozen=True)
class TaskStudy:
    """A study of one task on one model, the arms in their order."""

    model: str
    parameters: int
    found: tuple[ArmResult, ...]

    @property
    def task(self) -> TaskSpec:
        return self.found[0].arm.task


def plan_study(
    kind: StudyKind,
    tasks: Sequence[str],
    shots: Sequence[int | str],
    orders: int,
    setting: TaskSetting,
    measure: str,
    path: Sequence[Path],
) -> list[list[Arm]]:
    """The arms of each task; everything is checked before a model is read.

    Args:
        tasks: names and files, as `find_tasks` reads them.
        shots: numbers of examples; those of the papers if empty.
        measure: the headline measure in place of the tasks' own.
        path: folders with the tasks' data.

    Raises:
        UserError: a task or measure is unknown or missing, or a task does not fit the study.
    """
    check_limits(setting.limit, setting.seed)
    counts = [count for count in shot_counts(shots) if count is not None]
    if len(counts) < len(shots):
        raise UserError("--shots fit: a study shows as many as it says", "e.g. --shots 4")
    found = find_tasks(list(tasks), run_python=True)
    if not found:
        raise UserError("no tasks", "name some: --tasks boolq")
    plans = []
    for task in found:
        if measure:
            task = with_measure(task, measure)
        renames = False
        if kind == "labels":
            pool = read_data(task, path, setting.seed).pool
            ShownLabels(task, pool, "random", setting.seed)  # refuses a task without labels
            renames = has_shared_labels(task, pool)
        count = counts or DEFAULT_SHOTS[kind]
        plans.append(plan_arms(kind, task, count, orders, setting, renames=renames))
    return plans


def run_study(
    models: Sequence[str],
    plans: Sequence[Sequence[Arm]],
    path: Sequence[Path],
    folder: Path,
    machine: ResolvedMachine,
    *,
    chat: bool = False,
    quiet: bool = False,
) -> list[TaskStudy]:
    """Evaluate each model on every arm of every task; items' rows go to ``folder``/MODEL.

    Raises:
        UserError: there is no model, one is named twice, or a task cannot be evaluated.
    """
    names = [folder_name(model) for model in models]
    if not models:
        raise UserError("no models", "e.g. lmsmith study labels smollm2-135m --tasks boolq")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{twice}: named twice", "name each model once")
    planned = [
        [PlannedTask(f"{a.task.name} {a.line} {a.name}", a.task, a.setting) for a in arms]
        for arms in plans
    ]
    labels = [each.label for plan in planned for each in plan]
    studies, options = [], TaskOptions(chat=chat)
    for word, name in zip(models, names, strict=True):
        progress = choose_progress(f"study {word}", quiet)
        place = folder / name
        with model_to_evaluate(word, place, labels, progress, machine, options) as model:
            for arms, plan in zip(plans, planned, strict=True):
                results = run_plan(model, plan, path, place, progress)
                found = tuple(compare_arms(arms, results))
                studies.append(TaskStudy(model.name, model.parameters, found))
    return studies
