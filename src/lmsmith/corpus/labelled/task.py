"""A labelled task: which columns of which files are the texts and the label; and its examples."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from lmsmith.core.config import MOST_TOML, Problem, SettingsError, decode, parse_toml
from lmsmith.core.errors import UserError
from lmsmith.core.files import is_there, missing, read_text
from lmsmith.corpus.labelled.tables import Format, as_finite, file_on_disk, read_table

Form = Literal["classification", "entailment", "similarity", "multiple_choice"]
"""GPT-1's four (Radford et al. 2018, figure 1)."""

Measure = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
"""GLUE's; the last two are of numbers."""

TEXTS: Mapping[Form, int] = {
    "classification": 1,
    "entailment": 2,
    "similarity": 2,
    "multiple_choice": 1,
}
"""How many texts an example of each form has, its answers aside."""

SHOWN = 12
"""Labels or columns that a message names."""

LARGEST_LABEL = 10**18
"""Whole numbers below it are labels; a longer one is a mistake."""


@dataclass(frozen=True)
class TableSpec:
    """Files of a task; paths are relative to the task's file or to a folder of data."""

    train: str = ""
    """The examples that are learnt from."""
    validation: str = ""
    """Examples that say when to stop; a share of the training examples if empty."""
    test: tuple[str, ...] = ()
    """Examples that the result is measured on; never seen in training."""
    format: Format = "auto"
    """``jsonl``, ``csv`` or ``tsv``; by the end of the file's name if ``auto``."""
    columns: tuple[str, ...] = ()
    """Names of the columns in a file whose first line does not have them."""
    quotes: bool | None = None
    """Whether quotation marks stand around fields; in comma-separated files alone by default."""

    def check(self) -> list[Problem]:
        """No training file."""
        return [] if self.train else [Problem("train", "", "a file", "name the training examples")]


@dataclass(frozen=True)
class LabelledTask:
    """What a fine-tuned model learns to do."""

    data: TableSpec
    """Where the examples are."""
    texts: tuple[str, ...]
    """The columns of the texts: one; two for entailment (premise, hypothesis) and similarity."""
    name: str = ""
    """The task's name; the file's if empty."""
    about: str = ""
    """What it is, in a sentence."""
    source: str = ""
    """Where the data is from."""
    form: Form = "classification"
    """``classification``, ``entailment``, ``similarity`` or ``multiple_choice``."""
    label: str = "label"
    """The column of the label; with multiple_choice of the right answer's number, from 0."""
    labels: tuple[str, ...] = ()
    """All labels, in the order of the model's outputs; those of the training file, sorted, if
    empty. With multiple_choice, names of the answers' places, such as A, B, C, D."""
    numbers: bool = False
    """The label is a number to be predicted (regression)."""
    answers: tuple[str, ...] = ()
    """With multiple_choice: the column that holds a list of answers, or a column for each."""
    measures: tuple[Measure, ...] = ()
    """The measures, the first of which decides; accuracy, or with numbers pearson, if empty."""
    positive: str = ""
    """The label whose F1 is meant; the mean over all labels if empty."""

    def check(self) -> list[Problem]:
        """Columns, labels and measures that do not go with the form."""
        problems, wanted = [], TEXTS[self.form]
        if len(self.texts) != wanted:
            names = "one column" if wanted == 1 else f"{wanted} columns"
            problems.append(Problem("texts", list(self.texts), f"{names} with {self.form}"))
        if (self.form == "multiple_choice") != bool(self.answers):
            expected = "columns with multiple_choice, and only there"
            problems.append(Problem("answers", list(self.answers), expected))
        if self.numbers and (self.labels or self.form == "multiple_choice"):
            problems.append(Problem("numbers", True, "false where there are labels or answers"))
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            problems.append(Problem("labels", list(self.labels), "two or more different ones"))
        if self.positive and self.labels and self.positive not in self.labels:
            problems.append(Problem("positive", self.positive, "one of labels"))
        fitting = ("pearson", "spearman") if self.numbers else ("accuracy", "f1", "matthews")
        problems += [
            Problem("measures", each, f"one of {', '.join(fitting)} here")
            for each in self.measures
            if each not in fitting
        ]
        return problems

    @property
    def chosen_measures(self) -> tuple[Measure, ...]:
        """The measures, the deciding one first."""
        return self.measures or (("pearson", "spearman") if self.numbers else ("accuracy",))


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its texts, and what is to be predicted.

    Attributes:
        answers: to choose from; empty in all other forms.
        label: number of the label or of the right answer, from 0; 0 where a number is predicted.
        target: the number that is predicted.
        where: file and line, for messages.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    label: int = 0
    target: float = 0.0
    where: str = ""


@dataclass(frozen=True)
class LocatedTask:
    """A task and the paths of its files on this machine."""

    task: LabelledTask
    train: Path
    validation: Path | None
    test: tuple[Path, ...]
    file: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All files that the task reads, its own among them."""
        places = [self.train, *([self.validation] if self.validation else []), *self.test]
        own = [self.file] if self.file else []
        return [*own, *dict.fromkeys(map(file_on_disk, places))]


@dataclass(frozen=True)
class TaskExamples:
    """A task's examples; ``labels`` are the names of the numbers, empty for regression."""

    labels: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example] = field(default_factory=list)


def shipped_labelled_tasks() -> dict[str, LabelledTask]:
    """The tasks that come with the package: those of GLUE that GPT-1 was fine-tuned on."""
    folder = resources.files("lmsmith.corpus.labelled")
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".toml"))
    texts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in files}
    return {
        name.removesuffix(".toml"): _decoded(text, name, name.removesuffix(".toml"))
        for name, text in texts.items()
    }


def locate_task(word: str, folders: Sequence[Path]) -> LocatedTask:
    """A shipped task of that name or a .toml file, and its files in one of the folders.

    Raises:
        UserError: no such task, wrong settings (all are named), or a file is in none of them.
    """
    shipped = shipped_labelled_tasks()
    if word in shipped:
        task, file = shipped[word], None
    elif word.lower().endswith(".toml"):
        file = Path(word).expanduser()
        task = _decoded(read_text(file, MOST_TOML), str(file), file.stem)
        folders = [file.parent, *folders]
    else:
        near = difflib.get_close_matches(word, shipped, n=1)
        fix = f"did you mean {near[0]}? " if near else ""
        fix += f"The tasks here: {', '.join(shipped)}; or name a .toml file"
        raise UserError(f"{word}: no such task for fine-tuning", fix)
    data = task.data
    return LocatedTask(
        task,
        _found(data.train, folders),
        _found(data.validation, folders) if data.validation else None,
        tuple(_found(each, folders) for each in data.test),
        file,
    )


def _decoded(text: str, where: str, name: str) -> LabelledTask:
    table = {"name": name, **parse_toml(text, where)}
    task, problems = decode(LabelledTask, table, "")
    if task is None or problems:
        raise SettingsError(problems, where)
    return task


def _found(name: str, folders: Sequence[Path]) -> Path:
    """The first file of that path, or of its last part: the user may name the inner folder."""
    for folder in folders:
        for path in (folder / Path(name).expanduser(), folder / Path(name).name):
            if is_there(file_on_disk(path)):
                return path
    looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise UserError(
        missing(name, f"not in any of {looked}")
        if Path(name).is_absolute()
        else f"{name}: not in any of {looked}",
        "name the folder it is in: --data FOLDER, or the environment variable LMSMITH_DATA",
    )


def read_examples(located: LocatedTask) -> TaskExamples:
    """All examples of a task.

    Raises:
        UserError: a file is damaged, a column is missing or empty, a label is none of the task's,
            a number is not finite, or there is one label only.
    """
    task = located.task
    rows = list(_rows(task, located.train))
    labels = task.labels
    if not labels and not task.numbers and task.form != "multiple_choice":
        labels = _sorted_labels({_label_text(row, task.label, where) for where, row in rows})
    if not task.numbers and task.form != "multiple_choice" and len(labels) < 2:
        raise UserError(
            f"{located.train}: one label only ({', '.join(labels)}), so nothing to tell apart",
            f"the column {task.label!r} must have two labels or more; name another as label",
        )
    if task.positive and task.positive not in labels:
        raise UserError(f"positive = {task.positive!r}: no label", f"one of {', '.join(labels)}")
    train = _examples(task, labels, rows, located.train)
    if task.numbers and len({example.target for example in train}) == 1:
        raise UserError(
            f"{located.train}: every example has the number {train[0].target:g} in the column "
            f"{task.label!r}: there is nothing to tell apart",
            "add examples with other numbers, or name another column as label",
        )
    if not task.numbers and task.form != "multiple_choice":
        _refuse_one_class(train, labels, located.train)

    def of(path: Path) -> list[Example]:
        return _examples(task, labels, list(_rows(task, path)), path)

    held_out = of(located.validation) if located.validation else []
    return TaskExamples(
        labels, train, held_out, [each for path in located.test for each in of(path)]
    )


def _rows(task: LabelledTask, path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    return read_table(path, task.data.columns, task.data.format, task.data.quotes)


def _refuse_one_class(train: Sequence[Example], labels: Sequence[str], path: Path) -> None:
    seen = Counter(example.label for example in train)
    if len(seen) < 2:
        only = labels[next(iter(seen))]
        raise UserError(
            f"{path}: every example has the label {only!r}: there is nothing to tell apart",
            "add examples of another label, or name another column as label",
        )


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """Numbers by their size, all others by their letters."""
    if all(as_finite(label) is not None for label in labels):
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    return tuple(sorted(labels))


def _examples(
    task: LabelledTask,
    labels: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, object]]],
    path: Path,
) -> list[Example]:
    found: list[Example] = []
    empty: dict[str, list[str]] = {}
    numbers = {label: number for number, label in enumerate(labels)}
    for where, row in rows:
        texts = tuple(_text(row, name, where) for name in task.texts)
        for name, text in zip(task.texts, texts, strict=True):
            if not text.strip():
                empty.setdefault(name, []).append(where)
        answers = _answers(task, row, where)
        target, label = 0.0, 0
        if task.numbers:
            target = _number(row, task.label, where)
        elif task.form == "multiple_choice":
            label = _place(_label_text(row, task.label, where), labels, len(answers), where)
        else:
            written = _label_text(row, task.label, where)
            if written not in numbers:
                raise UserError(
                    f"{where}: the label {written!r} is none of {_listed(labels)}",
                    "fix the row, or write all labels as labels = [...] in the task",
                )
            label = numbers[written]
        found.append(Example(texts, answers, label, target, where))
    for name, places in empty.items():
        raise UserError(
            f"{path}: the column {name!r} is empty in {len(places):,} of {len(rows):,} rows "
            f"(the first: {places[0]})",
            "remove these rows, or name another column in texts",
        )
    return found


def _value(row: Mapping[str, object], name: str, where: str) -> object:
    if name not in row:
        raise UserError(
            f"{where}: no column {name!r}; there is {_listed(list(map(str, row)))}",
            "name the columns of the texts and the label in the task: texts, label",
        )
    return row[name]


def _text(row: Mapping[str, object], name: str, where: str) -> str:
    value = _value(row, name, where)
    if value is None or isinstance(value, str):
        return value or ""
    raise UserError(f"{where}: {name} is {str(value)[:80]}, no text", "write it in quotes")


def _label_text(row: Mapping[str, object], name: str, where: str) -> str:
    """A label as it is compared: JSON's 1, 1.0 and "1" are one label."""
    value = _value(row, name, where)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) < LARGEST_LABEL:
        return str(int(value)) if value == int(value) else f"{value:.15g}"
    if isinstance(value, int | float):
        fix = "fix the row, or write it in quotes"
        raise UserError(f"{where}: the label {str(value)[:40]} is no label", fix)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise UserError(f"{where}: no label in the column {name!r}", "fill it in, or remove the row")


def _number(row: Mapping[str, object], name: str, where: str) -> float:
    value = _value(row, name, where)
    number = as_finite(value)
    if number is None:
        raise UserError(
            f"{where}: {name} is {str(value)[:80]!r}, no finite number to predict",
            "fix or remove the row, or leave numbers out of the task",
        )
    return number


def _answers(task: LabelledTask, row: Mapping[str, object], where: str) -> tuple[str, ...]:
    if not task.answers:
        return ()
    if len(task.answers) > 1:
        found: object = [_value(row, name, where) for name in task.answers]
    else:
        found = _value(row, task.answers[0], where)
    usable = isinstance(found, list) and all(isinstance(a, str) and a.strip() for a in found)
    if not usable or not isinstance(found, list) or len(found) < 2:
        raise UserError(
            f"{where}: {', '.join(task.answers)} gives no two or more answers that are texts",
            "name a column that holds a list of texts, or a column for each answer",
        )
    return tuple(found)


def _place(written: str, names: Sequence[str], answers: int, where: str) -> int:
    """The right answer's number, from 0."""
    if names:
        place = names.index(written) if written in names else answers
    else:
        place = int(written) if written.isdecimal() and len(written) < 10 else answers
    if place >= answers:
        expected = _listed(names[:answers]) if names else f"0 to {answers - 1}"
        raise UserError(f"{where}: the right answer is {written!r}, not {expected}", "fix the row")
    return place


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
