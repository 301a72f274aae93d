"""A model on a plan of tasks: items in batches, each answer kept as it comes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from msgspec import structs

from lmsmith.catalogue.remote import BYTES_PER_TOKEN
from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, write_json
from lmsmith.core.progress import Progress, RunProgress, choose_progress
from lmsmith.core.version import VERSION
from lmsmith.evaluation.measures import aggregate, lm_eval_metrics
from lmsmith.evaluation.methods.code import Code
from lmsmith.evaluation.methods.likelihood import Cloze, MultipleChoice
from lmsmith.evaluation.methods.perplexity import Rolling
from lmsmith.evaluation.methods.rated import Rated, classifier_score, rater_identity
from lmsmith.evaluation.methods.writing import free_form_method
from lmsmith.evaluation.model import EvaluatedModel, load_evaluated_model
from lmsmith.evaluation.rows import AnswerRow, AnyRow, ItemLog
from lmsmith.evaluation.tasks.data import (
    Item,
    MissingData,
    TaskData,
    draw_items,
    read_data,
    search_path,
)
from lmsmith.evaluation.tasks.item_texts import naming_the_task
from lmsmith.evaluation.tasks.prompts import (
    PromptSizes,
    Question,
    choose_shots,
    prepare,
    with_shots,
)
from lmsmith.evaluation.tasks.python_task import WRITTEN, PythonTask
from lmsmith.evaluation.tasks.shipped import find_tasks, suites
from lmsmith.evaluation.tasks.shown_labels import ShownLabels
from lmsmith.evaluation.tasks.spec import Published, TaskSetting, TaskSpec
from lmsmith.models.batching import length_batches
from lmsmith.options import CompareOptions, TaskOptions
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal, stop_if_requested
from lmsmith.statistics.intervals import Interval
from lmsmith.training.machine import ResolvedMachine

ROWS_VERSION = 3
"""Version of the rows' contents; rows of another version are discarded."""

PREPARED = 1024
"""Items whose templates are evaluated together."""

TOKENS_A_BATCH = 4_096
"""Tokens read between two savings, about."""

LOCATIONS = ("file", "package", "path", "hub", "subset", "split", "revision", "examples", "beside")
"""Settings that only say where data is; its contents are in its own fingerprint."""


@dataclass(frozen=True)
class PlannedTask:
    """A task with its setting, and its name in the progress."""

    label: str
    task: TaskSpec
    setting: TaskSetting


Plan = list[PlannedTask]


@dataclass(frozen=True)
class TaskResult:
    """A model's result on a task.

    Attributes:
        measures: each with its interval.
        items: how many.
        truncated: items whose beginning did not fit the context.
        mean_shots: examples that were shown, on average.
        seconds: spent, in all sittings.
        rows: of the items, in the data's order.
        log: the file that holds them.
        available: items that the data has, of which these were drawn; 0 if it is not known.
    """

    task: TaskSpec
    setting: TaskSetting
    measures: Mapping[str, Interval]
    items: int
    truncated: int
    mean_shots: float
    seconds: float
    rows: Sequence[AnyRow]
    log: Path
    available: int = 0

    @property
    def part(self) -> str:
        """The items where they are not all: ``200 of 1,838 items, drawn by seed 0``."""
        if self.items >= self.available:
            return ""
        return f"{self.items:,} of {self.available:,} items, drawn by seed {self.setting.seed}"

    @property
    def name(self) -> str:
        """The task, and its shots if there are any."""
        shots = self.setting.label
        return self.task.name if shots == "0" else f"{self.task.name}, {shots}-shot"

    @property
    def headline(self) -> Interval:
        """Interval of the task's headline measure."""
        return self.measures[self.task.measure]

    @property
    def published(self) -> tuple[Published, ...]:
        """Papers' figures of the same number of shots."""
        shots = self.setting.shots
        kind = "zero" if shots == 0 else "one" if shots == 1 else "few"
        return tuple(row for row in self.task.published if row.shots == kind)

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and results.json."""
        return {
            "task": self.task.name,
            "kind": self.task.kind,
            "shots": self.setting.label,
            "fixed_shots": self.setting.fixed,
            "seed": self.setting.seed,
            "measure": self.task.measure,
            "measures": {name: vars(each) for name, each in self.measures.items()},
            "metrics": {n: vars(each) for n, each in lm_eval_metrics(self.measures).items()},
            "items": self.items,
            "items_available": self.available,
            "truncated": self.truncated,
            "mean_shots": round(self.mean_shots, 2),
            "seconds": round(self.seconds, 3),
            "published": [encode(row) for row in self.published],
            "log": str(self.log),
        }


@dataclass(frozen=True)
class ModelEvaluation:
    """One model's results.

    Attributes:
        word: the model as the user named it.
        folder: of its results and its items' rows.
        record: the contents of results.json.
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


def plan_tasks(options: TaskOptions, judge: str) -> Plan:
    """Find the tasks, and plan each with each number of shots; none beside instructions alone.

    Args:
        judge: the model that grades texts; the one under evaluation if empty.

    Raises:
        UserError: nothing, or something unknown, is named; the classifier is not a task and a
            label; or several models are compared and each would rate its own texts.
    """
    shots = tuple(shot_counts(options.shots))
    asked = [(word, shots) for word in options.tasks]
    if suite := options.suite:
        known = suites()
        if suite not in known:
            raise UserError(f"--suite {suite}: no such suite", f"the suites: {', '.join(known)}")
        asked += [(task, shots or (int(own),)) for task, own in known[suite]]
    comparison = options if isinstance(options, CompareOptions) else None
    if not asked and not (comparison and comparison.win_rate):
        raise UserError("no tasks", "name some: --tasks lambada,copa, or --suite gpt3")
    classifier, _, label = options.classifier.partition("=")
    if options.classifier and not (classifier and label):
        fix = "write it as TASK=LABEL"
        raise UserError(f"--classifier {options.classifier}: no label", fix)
    plan: dict[str, PlannedTask] = {}
    named: dict[str, TaskSpec] = {}
    for word, counts in dict.fromkeys(asked):
        for task in find_tasks([word], run_python=True):
            if named.setdefault(task.name, task) != task:
                problem = f"{word}: another task has the name {task.name}"
                raise UserError(problem, "rename one of the two")
            if options.measure:
                task = with_measure(task, options.measure)
            if task.kind == "rated":
                task = _with_rater(task, classifier, label, judge, compared=bool(comparison))
            for count in counts or (task.shots,):
                setting = TaskSetting(
                    task.shown_shots(count), options.fixed_shots, options.limit, options.seed
                )
                name = f"{task.name} {setting.label}-shot"
                plan.setdefault(name, PlannedTask(name, task, setting))
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


def _with_rater(
    task: TaskSpec, classifier: str, label: str, judge: str, *, compared: bool
) -> TaskSpec:
    rating = task.rating
    if rating.by == "toxicity" and classifier:
        rating = replace(rating, classifier=classifier, label=label)
    by_model = rating.by == "model" or bool(rating.classifier)
    if judge and by_model:
        rating = replace(rating, grader=judge)
    if compared and by_model and not rating.grader:
        problem = f"task {task.name}: each model would rate its own texts"
        raise UserError(problem, "name one that rates them all: --judge MODEL")
    return replace(task, rating=rating)


@contextlib.contextmanager
def model_to_evaluate(
    word: str,
    folder: Path,
    stages: Sequence[str],
    progress: RunProgress,
    machine: ResolvedMachine,
    options: TaskOptions,
) -> Iterator[EvaluatedModel]:
    """Read a model; inside, the folder is locked and Ctrl-C ends the work between two items.

    Args:
        stages: those that progress announces.
    """
    with StopSignal(), locked(folder, progress):
        progress.plan(list(stages))
        try:
            yield load_evaluated_model(word, machine, begins=options.begins, chat=options.chat)
        finally:
            progress.close()


@contextlib.contextmanager
def stage(progress: RunProgress, label: str) -> Iterator[None]:
    """Tell progress when a stage begins and how long it took."""
    started = time.monotonic()
    progress.stage_begins(label, "")
    yield
    progress.stage_ends(label, time.monotonic() - started)


def evaluate_model(
    word: str, plan: Plan, options: TaskOptions, machine: ResolvedMachine
) -> ModelEvaluation:
    """Evaluate a model on a plan: results.json and each task's rows go to ``options.folder``.

    Args:
        word: a run, a model folder, a Hugging Face folder, a GGUF file or a registered name.

    Raises:
        UserError: there is no such model, or a task cannot be asked.
        Interrupted: after Ctrl-C, with all answers kept.
    """
    path, labels = search_path(options.data), [planned.label for planned in plan]
    folder = options.folder or Path("evals") / folder_name(word)
    progress = choose_progress(f"eval {word}", options.quiet)
    with model_to_evaluate(word, folder, labels, progress, machine, options) as model:
        skip = bool(options.suite)
        results = run_plan(model, plan, path, folder, progress, skip_missing=skip)
        return write_results(word, model, results, folder)


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
) -> ModelEvaluation:
    """Write a model's results.json."""
    record = model_record(model) | {"results": [result.as_dict() for result in results]}
    write_json(folder / "results.json", record)
    return ModelEvaluation(word, folder, record, results)


def model_record(model: EvaluatedModel) -> dict[str, Any]:
    """The model in results.json."""
    return {
        "model": model.name,
        "parameters": model.parameters,
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "starts_texts": bool(model.start),
        "chat": model.chat,
        "version": VERSION,
    }


def evaluate_task(
    model: EvaluatedModel,
    task: TaskSpec,
    setting: TaskSetting,
    path: Sequence[Path],
    folder: Path,
    progress: Progress,
) -> TaskResult:
    """Put a task to a model; see `run_plan`."""
    setting = replace(setting, shots=task.shown_shots(setting.shots))
    data = read_data(task, path, setting.seed)
    there = len(data.pool) - (data.pool is data.items)  # no item is its own example
    if setting.shots and setting.shots > there:
        problem = f"{setting.shots} shots, but there are {len(data.pool)} examples"
        fix = "ask for fewer, or name a file with more as data.examples"
        raise UserError(f"task {task.name}: {problem}", fix)
    items = draw_items(data.items, setting.limit, setting.seed)
    of = identity(model, task, data, setting, path)
    log: ItemLog[AnyRow] = ItemLog(log_path(folder, task, setting), of, AnyRow)
    left = [item for item in items if item.id not in log.rows]
    if left:
        answer_items(model, task, setting, left, data.pool, log, len(items), progress, path)
    rows = [log.rows[item.id] for item in items]
    return TaskResult(
        task,
        setting,
        aggregate(rows, seed=setting.seed),
        len(rows),
        sum(row.truncated > 0 for row in rows),
        sum(len(row.shots) for row in rows) / len(rows),
        log.seconds,
        rows,
        log.path,
        len(data.items),
    )


def answer_items(
    model: EvaluatedModel,
    task: TaskSpec,
    setting: TaskSetting,
    items: Sequence[Item],
    pool: Sequence[Item],
    log: ItemLog[AnyRow],
    total: int,
    progress: Progress,
    path: Sequence[Path],
) -> None:
    """Ask the items that are left, longest first, and log their rows."""
    started = time.monotonic()
    write: Callable[[Item, Sequence[Item]], Question] = functools.partial(with_shots, task)
    if setting.labels != "gold":
        labels = ShownLabels(task, pool, setting.labels, setting.seed, fixed=setting.fixed)
        write = labels.question
    questions: list[Question] = []
    sizes = PromptSizes(task)
    for some in (items[start : start + PREPARED] for start in range(0, len(items), PREPARED)):
        prepare(task, setting, some, pool)
        for item in some:
            questions.append(write(item, choose_shots(model, task, setting, item, pool)))
            sizes.add(item, questions[-1])
    if task.kind == "free_form" and not task.answer.extract:
        for sentence in unwritable(model, task, questions):
            progress.say(sentence)
    method = make_method(model, task, questions, setting.seed, path)
    by_id = {item.id: item for item in items}
    done = total - len(items)
    documents = method if isinstance(method, Rolling) else None
    if documents:  # of very different lengths

        def read(tokens: int) -> None:
            progress.update(tokens)
            stop_if_requested()

        documents.on_tokens = read
        progress.begin(task.name, sum(documents.tokens), "tokens")
    else:
        progress.begin(task.name, total, "items", done)
    for batch in length_batches(method.tokens, TOKENS_A_BATCH):
        with naming_the_task(task):
            rows = [scored(task, by_id[row.id], row) for row in method.answer(batch)]
        now = time.monotonic()
        log.append(rows, now - started)
        started = now
        done += len(rows)
        if not documents:
            progress.update(done)
        stop_if_requested()
    progress.end()


class Method(Protocol):
    """Answers the questions of one kind of task; ``tokens`` is each one's approximate cost."""

    @property
    def tokens(self) -> list[int]: ...

    def answer(self, numbers: Sequence[int]) -> Iterator[AnyRow]:
        """The rows of the questions of these numbers."""


def make_method(
    model: EvaluatedModel,
    task: TaskSpec,
    questions: Sequence[Question],
    seed: int = 0,
    path: Sequence[Path] | None = None,
) -> Method:
    """The method of a task's kind, for these questions; ``path`` as in `run_plan`."""
    match task.kind:
        case "multiple_choice":
            return MultipleChoice(model, questions, task.answer_context)
        case "cloze":
            return Cloze(model, questions)
        case "perplexity":
            return Rolling(model, questions, task.data.window, task.data.overlap)
        case "code":
            return Code(model, questions, task.answer, seed)
        case "rated":
            named = task.rating.classifier
            classify = classifier_score(model, task.rating, path) if named else None
            return Rated(model, questions, task.answer, task.rating, seed, classify)
        case "free_form":
            return free_form_method(model, task, questions, seed)


def unwritable(
    model: EvaluatedModel, task: TaskSpec, questions: Sequence[Question]
) -> Iterator[str]:
    """Why the model cannot write the right answers of some questions, a sentence each."""
    room, stops = task.answer.max_new_tokens, task.answer.stop
    file = "in the task's file (lmsmith tasks show TASK --toml begins one)"
    of = f"{task.name}: the right answers of {{}} of {len(questions)} items"
    golds = [[gold.strip() for gold in question.answers] for question in questions]
    width = BYTES_PER_TOKEN if model.is_remote else 1
    sizes = (
        [len(tokens) // width for tokens in model.tokenizer.encode_batch(each)] for each in golds
    )
    if long := sum(min(each) > room for each in sizes):
        why = f"are longer than {room} tokens: raise answer.max_new_tokens"
        yield f"{of.format(long)} {why} {file}"
    if ended := sum(all(any(s in gold for s in stops) for gold in each) for each in golds):
        why = "contain a text at which an answer ends: change answer.stop"
        yield f"{of.format(ended)} {why} {file}"


def scored(task: TaskSpec, item: Item, row: AnyRow) -> AnyRow:
    """A row with its value by the measure of a task's own class, if it has one."""
    author = task.author if isinstance(task, PythonTask) and task.own_measure else None
    if author is None or not isinstance(row, AnswerRow):
        return row
    fields = {key: value for key, value in item.fields.items() if key != WRITTEN}
    value = author.measure(fields, row.answer, item.where)
    return structs.replace(row, metrics={task.measures[0]: value, **row.metrics})


def log_path(folder: Path, task: TaskSpec, setting: TaskSetting) -> Path:
    """The file of a task's rows."""
    name = task.name.replace("/", ".")
    fixed = "-fixed" if setting.fixed and setting.shots != 0 else ""
    labels = f"-{setting.labels}-labels" if setting.labels != "gold" else ""
    order = f"-order-{setting.order}" if setting.order else ""
    return folder / f"{name}-{setting.label}-shot{fixed}{labels}{order}.jsonl"


def identity(
    model: EvaluatedModel,
    task: TaskSpec,
    data: TaskData,
    setting: TaskSetting,
    path: Sequence[Path] | None = None,
) -> dict[str, object]:
    """All that a row depends on; not the number of items, since each row is of its item alone."""
    of_task = encode(task)
    for key in ("about", "source", "published"):
        del of_task[key]
    for key in LOCATIONS:
        del of_task["data"][key]
    if task.kind != "rated":
        del of_task["rating"]
    parts: dict[str, object] = {
        "version": ROWS_VERSION,
        "model": model.fingerprint,
        "task": of_task,
        "data": data.fingerprint,
        "shots": setting.label,
        "fixed": setting.fixed,
        "seed": setting.seed,
    }
    if task.kind == "rated":
        parts["rater"] = rater_identity(model, task.rating, path)
    if setting.labels != "gold":
        parts["labels"] = setting.labels
    if setting.order:
        parts["order"] = setting.order
    about = {"model_name": model.name, "task_name": task.name, "shots": setting.label}
    return {"fingerprint": fingerprint(parts), **about}


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
        if word != "fit" and not (word.isdecimal() and len(word) < 10):
            problem = f"--shots {word[:20]}: neither a number below a billion nor fit"
            raise UserError(problem, "e.g. --shots 0,1,4")
        counts.append(None if word == "fit" else int(word))
    return counts


def folder_name(model: str) -> str:
    """A folder's name from a model's: ``runs/small`` becomes ``runs--small``."""
    kept = [part for part in Path(model).parts if part not in ("/", "..", ".")]
    return "--".join(kept) or "model"
