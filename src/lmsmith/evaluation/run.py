"""A model on a plan of tasks: ``lmsmith eval``, ``lmsmith study`` and `lmsmith.evaluate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json
from lmsmith.core.progress import RunProgress
from lmsmith.core.version import VERSION
from lmsmith.evaluation.evaluator import Setting, TaskResult, evaluate_task
from lmsmith.evaluation.model import EvaluatedModel, load_evaluated_model
from lmsmith.evaluation.tasks.data import MissingData
from lmsmith.evaluation.tasks.shipped import find_tasks, suites
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal
from lmsmith.training.machine import ResolvedMachine


@dataclass(frozen=True)
class PlannedTask:
    """A task with the way it is asked, and what progress calls it."""

    label: str
    task: TaskSpec
    setting: Setting


Plan = list[PlannedTask]


@dataclass(frozen=True)
class Evaluation:
    """One model's results.

    Attributes:
        word: the model as the user named it.
        folder: where its results and its items' rows are.
        record: what results.json holds.
        results: one a planned task.
        report: the page, once it is written.
    """

    word: str
    folder: Path
    record: dict[str, Any]
    results: list[TaskResult]
    report: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record with the page's path: what ``--json`` prints."""
        return self.record | ({"report": str(self.report)} if self.report else {})

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.record["model"])


def plan_tasks(
    tasks: Sequence[str],
    suite: str = "",
    shots: Sequence[int | None] = (),
    setting: Setting | None = None,
    measure: str = "",
) -> Plan:
    """Find the tasks, and plan each with each number of shots.

    Args:
        tasks: names, groups and files, as `find_tasks` reads them.
        suite: tasks that go together, beside those named.
        shots: numbers of examples, None for as many as fit; what each task says if empty.
        setting: all else of how they are asked.
        measure: the headline measure in place of the tasks' own.

    Raises:
        UserError: nothing, or something unknown, is named.
    """
    setting = setting or Setting()
    asked = [(word, tuple(shots)) for word in tasks]
    if suite:
        known = suites()
        if suite not in known:
            raise UserError(f"--suite {suite}: no such suite", f"the suites: {', '.join(known)}")
        asked += [(task, tuple(shots) or (int(own),)) for task, own in known[suite]]
    if not asked:
        raise UserError("no tasks", "name some: --tasks lambada,copa, or --suite gpt3")
    plan: dict[str, PlannedTask] = {}
    named: dict[str, TaskSpec] = {}
    for word, counts in dict.fromkeys(asked):
        for task in find_tasks([word], run_python=True):
            if named.setdefault(task.name, task) != task:
                problem = f"{word}: another task has the name {task.name}"
                raise UserError(problem, "rename one of the two")
            if measure:
                task = with_measure(task, measure)
            for count in counts or (task.shots,):
                each = replace(setting, shots=task.shown_shots(count))
                label = f"{task.name} {each.label}-shot"
                plan.setdefault(label, PlannedTask(label, task, each))
    return list(plan.values())


def with_measure(task: TaskSpec, measure: str) -> TaskSpec:
    """The task with another headline measure.

    Raises:
        UserError: the task has no such measure.
    """
    changed = replace(task, headline=measure)
    if changed.check():
        raise UserError(f"--measure {measure}: task {task.name} has no such measure")
    return changed


def with_raters(plan: Plan, classifier: str, judge: str, *, compares: bool = False) -> Plan:
    """The plan with what rates its tasks' texts.

    Args:
        classifier: ``TASK=LABEL``, in place of the patterns of toxicity.
        judge: the model that grades; the one under evaluation if empty.
        compares: whether several models are compared.

    Raises:
        UserError: ``classifier`` is not a task and a label, or several models are compared and
            each would rate its own texts.
    """
    name, _, label = classifier.partition("=")
    if classifier and not (name and label):
        raise UserError(f"--classifier {classifier}: no label", "write it as TASK=LABEL")
    changed: Plan = []
    for planned in plan:
        task, rating = planned.task, planned.task.rating
        if task.kind == "rated":
            if rating.by == "toxicity" and name:
                rating = replace(rating, classifier=name, label=label)
            by_model = rating.by == "model" or bool(rating.classifier)
            if judge and by_model:
                rating = replace(rating, grader=judge)
            if compares and by_model and not rating.grader:
                raise UserError(
                    f"task {task.name}: each model would rate its own texts",
                    "name one that rates them all: --judge MODEL",
                )
            planned = replace(planned, task=replace(task, rating=rating))
        changed.append(planned)
    return changed


@contextlib.contextmanager
def model_to_evaluate(
    word: str,
    folder: Path,
    stages: Sequence[str],
    progress: RunProgress,
    machine: ResolvedMachine,
    *,
    begins: bool | None = None,
    chat: bool = False,
) -> Iterator[EvaluatedModel]:
    """Read a model; inside, the folder is locked and Ctrl-C ends the work between two items.

    Args:
        stages: what progress announces.
        begins, chat: see `load_evaluated_model`.
    """
    with StopSignal(), locked(folder, progress):
        progress.plan(list(stages))
        try:
            yield load_evaluated_model(word, machine, begins=begins, chat=chat)
        finally:
            progress.close()


@contextlib.contextmanager
def stage(progress: RunProgress, label: str) -> Iterator[None]:
    """Tell progress when a stage begins and how long it took."""
    started = time.monotonic()
    progress.stage_begins(label, "")
    yield
    progress.stage_ends(label, time.monotonic() - started)


def run_plan(
    model: EvaluatedModel,
    plan: Plan,
    path: Sequence[Path],
    folder: Path,
    progress: RunProgress,
    *,
    skip_missing: bool = False,
) -> list[TaskResult]:
    """Evaluate every task of a plan; items that are answered already are not asked again.

    Args:
        path: folders in which tasks' data is looked for.
        folder: of the items' rows.
        skip_missing: leave out a task whose data is not here.

    Raises:
        UserError: data is missing or damaged, or an item cannot be asked.
    """
    results = []
    for planned in plan:
        with stage(progress, planned.label):
            try:
                task, setting = planned.task, planned.setting
                results.append(evaluate_task(model, task, setting, path, folder, progress))
            except MissingData as error:
                if not skip_missing:
                    raise
                progress.say(f"{planned.label} left out: {error.problem}")
    return results


def write_results(
    word: str, model: EvaluatedModel, results: list[TaskResult], folder: Path
) -> Evaluation:
    """Write a model's results.json."""
    record: dict[str, Any] = {
        "model": model.name,
        "parameters": model.parameters,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "starts_texts": bool(model.start),
        "chat": model.chat,
        "version": VERSION,
        "results": [result.as_dict() for result in results],
    }
    write_json(folder / "results.json", record)
    return Evaluation(word, folder, record, results)


def evaluate_model(
    word: str,
    plan: Plan,
    path: Sequence[Path],
    folder: Path,
    progress: RunProgress,
    machine: ResolvedMachine,
    *,
    begins: bool | None = None,
    chat: bool = False,
    skip_missing: bool = False,
) -> Evaluation:
    """Evaluate a model on a plan: results.json and each task's rows go to ``folder``.

    Args:
        word: a run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        path, skip_missing: see `run_plan`.
        begins, chat: see `load_evaluated_model`.

    Raises:
        UserError: there is no such model, or a task cannot be asked.
        Interrupted: after Ctrl-C, with all answers kept.
    """
    stages = [planned.label for planned in plan]
    with model_to_evaluate(
        word, folder, stages, progress, machine, begins=begins, chat=chat
    ) as model:
        results = run_plan(model, plan, path, folder, progress, skip_missing=skip_missing)
        return write_results(word, model, results, folder)


def check_limits(limit: int | None, seed: int) -> None:
    """Raises UserError if a number of items or a seed is out of range."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more", "leave it out for all items")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more", "e.g. --seed 1")


def shot_counts(words: Sequence[int | str]) -> list[int | None]:
    """Numbers of examples; None for ``fit``, as many as the context holds.

    Raises:
        UserError: a word is neither a number nor ``fit``.
    """
    counts: list[int | None] = []
    for word in map(str, words):
        if word != "fit" and not word.isdecimal():
            raise UserError(f"--shots {word}: neither a number nor fit", "e.g. --shots 0,1,4")
        counts.append(None if word == "fit" else int(word))
    return counts


def folder_name(model: str) -> str:
    """A folder's name from a model's: ``runs/small`` becomes ``runs--small``."""
    kept = [part for part in Path(model).parts if part not in ("/", "..", ".")]
    return "--".join(kept) or "model"
