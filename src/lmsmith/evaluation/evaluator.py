"""A model on tasks: items in batches, every answer kept as it comes, continued after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import structs

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.core.progress import Progress
from lmsmith.evaluation.calibration import choice_probabilities
from lmsmith.evaluation.measures import aggregate, lm_eval_metrics
from lmsmith.evaluation.methods.cloze import Cloze
from lmsmith.evaluation.methods.code import Code
from lmsmith.evaluation.methods.free_form import FreeForm, LeastToMost
from lmsmith.evaluation.methods.multiple_choice import MultipleChoice
from lmsmith.evaluation.methods.perplexity import Rolling
from lmsmith.evaluation.methods.rated import Rated, rater_identity, rating_model
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import AnswerRow, AnyRow, ChoiceRow, ItemLog
from lmsmith.evaluation.tasks.data import (
    Item,
    TaskData,
    draw_items,
    find_file,
    read_data,
    read_items,
    search_path,
)
from lmsmith.evaluation.tasks.prompts import Question, draw_shots, with_shots
from lmsmith.evaluation.tasks.python_task import WRITTEN, PythonTask
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.shown_labels import Labels, ShownLabels, nth_order
from lmsmith.evaluation.tasks.spec import Published, RatingSpec, TaskSpec
from lmsmith.models.batching import length_batches
from lmsmith.runs.signals import stop_if_requested
from lmsmith.statistics.intervals import Interval

ROWS_VERSION = 3
"""Version of the rows' contents; rows of another version are made again."""

TOKENS_A_BATCH = 4_096
"""About so many are read between two savings."""

CONTENTS = ("file", "package", "path", "hub", "subset", "split", "revision", "examples", "beside")
"""What only says where data is; what is there is in the data's own fingerprint."""

MOST_SHOTS = 128
"""As many as fit are no more than this."""


@dataclass(frozen=True)
class Setting:
    """How a task is put.

    Attributes:
        shots: examples before each item; None for as many as fit.
        fixed: the same examples for all items, else drawn for each.
        limit: only so many items, drawn by the seed; all if None.
        seed: of items, examples, generated items, sampling and the bootstrap.
        labels: what the examples show as their answers.
        order: which permutation of the examples; 0 as they are drawn.
    """

    shots: int | None = 0
    fixed: bool = False
    limit: int | None = None
    seed: int = 0
    labels: Labels = "gold"
    order: int = 0

    @property
    def label(self) -> str:
        """``0``, ``4``, ``fit``."""
        return "fit" if self.shots is None else str(self.shots)


@dataclass(frozen=True)
class TaskResult:
    """What a model made of a task.

    Attributes:
        task: what it was.
        setting: how it was put.
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
    setting: Setting
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
        """Which items they are where they are not all: ``200 of 1,838 items, drawn by seed 0``."""
        if self.items >= self.available:
            return ""
        return f"{self.items:,} of {self.available:,} items, drawn by seed {self.setting.seed}"

    @property
    def name(self) -> str:
        """The task, and its shots where it is put with any."""
        shots = self.setting.label
        return self.task.name if shots == "0" else f"{self.task.name}, {shots}-shot"

    @property
    def headline(self) -> Interval:
        """Interval of the task's headline measure."""
        return self.measures[self.task.measure]

    @property
    def published(self) -> tuple[Published, ...]:
        """Papers' figures of the same number of shots: none, one, or more."""
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


def evaluate_task(
    model: EvaluatedModel,
    task: TaskSpec,
    setting: Setting,
    path: Sequence[Path],
    folder: Path,
    progress: Progress,
) -> TaskResult:
    """Put a task to a model; items that are answered already are not asked again.

    Args:
        path: where data is looked for.
        folder: of the items' rows.

    Raises:
        UserError: the data is missing or damaged, or an item cannot be asked.
    """
    setting = replace(setting, shots=task.shown_shots(setting.shots))
    data = read_data(task, path, setting.seed)
    there = len(data.pool) - (data.pool is data.items)  # no item is its own example
    if setting.shots and setting.shots > there:
        raise UserError(
            f"task {task.name}: {setting.shots} shots, but there are {len(data.pool)} examples",
            "ask for fewer, or name a file with more as data.examples",
        )
    items = draw_items(data.items, setting.limit, setting.seed)
    of = identity(model, task, data, setting)
    log: ItemLog[AnyRow] = ItemLog(log_path(folder, task, setting), of, AnyRow)
    left = [item for item in items if item.id not in log.rows]
    if left:
        answer_items(model, task, setting, left, data.pool, log, len(items), progress)
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
    setting: Setting,
    items: Sequence[Item],
    pool: Sequence[Item],
    log: ItemLog[AnyRow],
    total: int,
    progress: Progress,
) -> None:
    """Ask the items that are left, longest first, and log their rows."""
    started = time.monotonic()
    labels = ShownLabels(task, pool, setting.labels, setting.seed, fixed=setting.fixed)
    questions = [ask(model, task, setting, item, pool, labels) for item in items]
    if task.kind == "free_form" and not task.answer.extract:
        for sentence in unwritable(model, task, questions):
            progress.say(sentence)
    method = make_method(model, task, questions, setting.seed)
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
    """How questions of one kind are answered."""

    @property
    def tokens(self) -> list[int]:
        """Approximate cost of each question, in tokens."""

    def answer(self, numbers: Sequence[int]) -> Iterator[AnyRow]:
        """The rows of the questions of these numbers."""


def make_method(
    model: EvaluatedModel, task: TaskSpec, questions: Sequence[Question], seed: int = 0
) -> Method:
    """What answers the questions of a task's kind."""
    answer, measure = task.answer, task.measure
    match task.kind:
        case "multiple_choice":
            alone = task.prompt.answer_context if measure == "accuracy_unconditional" else None
            return MultipleChoice(model, questions, alone)
        case "cloze":
            return Cloze(model, questions)
        case "perplexity":
            return Rolling(model, questions, task.data.window, task.data.overlap)
        case "code":
            return Code(model, questions, answer, seed)
        case "rated":
            rating = task.rating
            classify = classifier_score(model, rating) if rating.classifier else None
            return Rated(model, questions, answer, rating, seed, classify)
        case "free_form":
            if task.decompose.context:
                return LeastToMost(model, questions, answer, task.decompose, measure, seed)
            return FreeForm(model, questions, answer, measure, seed)


def classifier_score(
    model: EvaluatedModel, rating: RatingSpec
) -> Callable[[Sequence[str]], list[float]]:
    """Score texts by the probability that the user's own task gives the label.

    Raises:
        UserError: the task has no such label.
    """
    task = find_tasks([rating.classifier])[0]
    examples = list(read_items(find_file(task.data.file, search_path()), task.data))
    classify = TextFunction(rating_model(model, rating), task, examples)
    if rating.label not in classify(["a text"])[0].get("probabilities", {}):
        raise UserError(
            f"classifier {rating.classifier}: it has no label {rating.label!r}",
            "name one of its labels: --classifier TASK=LABEL",
        )

    def scores(texts: Sequence[str]) -> list[float]:
        answers = classify([text.strip() or "(nothing)" for text in texts])
        return [float(each["probabilities"][rating.label]) for each in answers]

    return scores


def unwritable(
    model: EvaluatedModel, task: TaskSpec, questions: Sequence[Question]
) -> Iterator[str]:
    """What keeps a model from writing the right answers of some questions, a sentence each."""
    room, stops = task.answer.max_new_tokens, task.answer.stop
    file = "in the task's file (lmsmith tasks show TASK --toml begins one)"
    of = f"{task.name}: the right answers of {{}} of {len(questions)} items"
    golds = [[gold.strip() for gold in question.answers] for question in questions]
    sizes = ([len(tokens) for tokens in model.tokenizer.encode_batch(each)] for each in golds)
    if long := sum(min(each) > room for each in sizes):
        why = f"are longer than {room} tokens: raise answer.max_new_tokens"
        yield f"{of.format(long)} {why} {file}"
    if ended := sum(all(any(s in gold for s in stops) for gold in each) for each in golds):
        why = "contain a text at which an answer ends: change answer.stop"
        yield f"{of.format(ended)} {why} {file}"


def scored(task: TaskSpec, item: Item, row: AnyRow) -> AnyRow:
    """A row with its value by the measure of a task's own class, if it has one."""
    scorer = task.scorer() if isinstance(task, PythonTask) else None
    if scorer is None or not isinstance(row, AnswerRow):
        return row
    fields = {key: value for key, value in item.fields.items() if key != WRITTEN}
    value = scorer(fields, row.answer, item.where)
    return structs.replace(row, metrics={task.measures[0]: value, **row.metrics})


def ask(
    model: EvaluatedModel,
    task: TaskSpec,
    setting: Setting,
    item: Item,
    pool: Sequence[Item],
    labels: ShownLabels | None = None,
) -> Question:
    """An item as a question, with its shots."""
    wanted = MOST_SHOTS if setting.shots is None else setting.shots
    drawn = draw_shots(pool, item, wanted, setting.seed, fixed=setting.fixed) if wanted else []
    if setting.shots is not None and len(drawn) < wanted:
        raise UserError(
            f"task {task.name}, {item.where}: {wanted} shots, but only {len(drawn)} of the "
            f"{len(pool)} examples ask something else",
            "ask for fewer by --shots, or name a file with more as data.examples",
        )
    if setting.order:
        drawn = [drawn[place] for place in nth_order(len(drawn), setting.order, setting.seed)]
    if setting.shots is None:
        drawn = _fitting_shots(model, task, item, drawn)
    if labels is None:
        return with_shots(task, item, drawn)
    return labels.asked(with_shots(task, item, drawn, labels.answers(item, drawn)))


def _fitting_shots(
    model: EvaluatedModel, task: TaskSpec, item: Item, drawn: Sequence[Item]
) -> list[Item]:
    """As many of the shots as leave room for the item and its answer, by bisection."""
    room = model.context - (
        task.answer.max_new_tokens if task.kind in ("free_form", "rated") else 0
    )

    def fits(count: int) -> bool:
        question = with_shots(task, item, drawn[:count])
        longest = max(question.choices, key=len)
        texts = [context + task.prompt.delimiter + longest for context in question.contexts]
        return max(len(tokens) for tokens in model.encode_contexts(texts)) <= room

    if fits(len(drawn)):
        return list(drawn)
    low, high = 0, max(0, len(drawn) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return list(drawn[:low])


def log_path(folder: Path, task: TaskSpec, setting: Setting) -> Path:
    """Where a task's rows are kept."""
    name = task.name.replace("/", ".")
    fixed = "-fixed" if setting.fixed and setting.shots != 0 else ""
    labels = f"-{setting.labels}-labels" if setting.labels != "gold" else ""
    order = f"-order-{setting.order}" if setting.order else ""
    return folder / f"{name}-{setting.label}-shot{fixed}{labels}{order}.jsonl"


def identity(
    model: EvaluatedModel, task: TaskSpec, data: TaskData, setting: Setting
) -> dict[str, object]:
    """What rows are of; the number of items does not matter, each row being of its item alone."""
    of_task = encode(task)
    for key in ("about", "source", "published"):
        del of_task[key]
    for key in CONTENTS:
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
        parts["rater"] = rater_identity(model, task.rating)
    if setting.labels != "gold":
        parts["labels"] = setting.labels
    if setting.order:
        parts["order"] = setting.order
    about = {"model_name": model.name, "task_name": task.name, "shots": setting.label}
    return {"fingerprint": fingerprint(parts), **about}


class TextFunction:
    """A task with its examples, put to any texts.

    Args:
        model: asked.
        task: made by `classification` or `extraction`.
        examples: shown before every text, the same ones in the same order, as many as fit.

    Attributes:
        cut: texts of which only the end was read, since the context holds no more.
    """

    def __init__(self, model: EvaluatedModel, task: TaskSpec, examples: Sequence[Item]) -> None:
        self._model, self._task, self._examples = model, task, tuple(examples)
        self.cut = 0

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self._model.context

    def __call__(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """For each text its label with every label's probability, or the line written."""
        if not inputs:
            return []
        questions = [self.question(text, number) for number, text in enumerate(inputs)]
        method = make_method(self._model, self._task, questions)
        rows = list(method.answer(range(len(questions))))
        self.cut += sum(row.truncated > 0 for row in rows)
        return [self._answer(text, row) for text, row in zip(inputs, rows, strict=True)]

    def question(self, text: str, number: int = 0) -> Question:
        """What the model is asked about a text: the description, the examples that fit, the text.

        Args:
            number: of the text; each number has random draws of its own.
        """
        item = Item(str(number), self._filler() | {"input": text}, "input")
        setting = Setting(shots=None, fixed=True)
        return ask(self._model, self._task, setting, item, self._examples)

    def _filler(self) -> dict[str, str]:
        """What stands for the answer that is not known; it is not shown to the model."""
        if self._task.kind == "free_form":
            return {"output": "?"}
        return {"label": str(self._examples[0].fields["label"])} if self._examples else {}

    def _answer(self, text: str, row: AnyRow) -> dict[str, Any]:
        if isinstance(row, AnswerRow):
            return {"input": text, "output": row.answer}
        assert isinstance(row, ChoiceRow), "a text function classifies or writes"
        labels = [choice.text for choice in row.choices]
        return labelled(text, labels, row.scores[self._task.measure])


def labelled(text: str, labels: Sequence[str], scores: Sequence[float | None]) -> dict[str, Any]:
    """A text with its likeliest label, and every label's probability by their scores."""
    probabilities = choice_probabilities(np.asarray(scores, np.float64))
    best = int(probabilities.argmax())
    chances = [round(float(p), 6) for p in probabilities]
    return {
        "input": text,
        "label": labels[best],
        "probability": chances[best],
        "probabilities": dict(zip(labels, chances, strict=True)),
    }
