"""An instruction task: labelled data, the cluster it belongs to, and its templates."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from lmsmith.core.config import MOST_TOML, Problem, SettingsError, decode, parse_toml
from lmsmith.core.errors import UserError
from lmsmith.core.files import is_there, read_rows, read_text
from lmsmith.corpus.instructions.template import LabelledExample, Template
from lmsmith.corpus.labelled.task import Example, LabelledTask, locate_task, read_examples
from lmsmith.corpus.splits import split_of

SHARES: Mapping[str, float] = {"validation": 0.05, "test": 0.25}
"""Shares of a file that has no parts of its own; of a labelled task's training examples, the first
alone."""

ALWAYS = ("answer", "label")
"""Texts that every example has."""


@dataclass(frozen=True)
class InstructionTask:
    """A task of instruction tuning."""

    cluster: str
    """Tasks of one kind, which are held out together."""
    templates: tuple[Template, ...]
    """Ways to put the task."""
    name: str = ""
    """The task's name; the file's if empty."""
    labelled: str = ""
    """A task of ``lmsmith finetune`` that has the examples: a shipped one or a .toml file."""
    names: tuple[str, ...] = ()
    """What templates call the texts of the labelled task; the columns' own names if empty."""
    words: dict[str, str] = field(default_factory=dict)
    """Label → the answer that stands for it."""
    file: str = ""
    """A JSONL file that has the examples, where there is no labelled task."""
    fields: dict[str, str] = field(default_factory=dict)
    """Column of the file → a regular expression whose named groups are the texts of templates."""
    options: str = ""
    """Column of the list of answers to choose from."""
    gold: str = ""
    """Column of the right one's number, from 0."""
    answer: str = ""
    """Column of the answer, where there is nothing to choose."""
    contexts: str = ""
    """Column of sentences that differ in their last words: these are the options, and what they
    begin with alike is the text ``before`` (Winograd's schemas)."""

    def check(self) -> list[Problem]:
        """Data that is missing or doubled, and templates that name no text of it."""
        problems = []
        if bool(self.labelled) == bool(self.file):
            problems.append(Problem("labelled", self.labelled, "either labelled or file"))
        if self.file and not (self.options or self.answer or self.contexts):
            problems.append(Problem("options", "", "options, contexts or answer with file"))
        if (self.options or self.contexts) and not self.gold:
            problems.append(Problem("gold", "", "a column", "name that of the right answer"))
        if not self.templates:
            problems.append(Problem("templates", [], "one or more", "write a line for each"))
        for column, rule in self.fields.items():
            try:
                named = bool(re.compile(rule).groupindex)
            except (re.error, OverflowError, RecursionError):
                named = False
            if not named:
                fix = "name the texts: (?P<question>.*)"
                problems.append(Problem(f"fields.{column}", rule, "a pattern of named groups", fix))
        return problems

    def with_templates(self, numbers: Iterable[int]) -> InstructionTask:
        """The task with some of its templates."""
        return replace(self, templates=tuple(self.templates[number] for number in numbers))


@dataclass(frozen=True)
class TaskTexts:
    """A task's examples.

    Attributes:
        labels: the labels in the order of the options; empty where examples have their own.
    """

    task: InstructionTask
    labels: tuple[str, ...]
    train: list[LabelledExample]
    validation: list[LabelledExample]
    test: list[LabelledExample]


def shipped_instruction_tasks() -> dict[str, InstructionTask]:
    """The tasks that come with the package, by name."""
    folder = resources.files("lmsmith.corpus.instructions") / "tasks"
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".toml"))
    return {
        name.removesuffix(".toml"): read_task(
            folder.joinpath(name).read_text(encoding="utf-8"), name
        )
        for name in files
    }


def read_task(text: str, where: str) -> InstructionTask:
    """The task of a TOML file.

    Raises:
        SettingsError: every problem of it at once.
    """
    table = {"name": Path(where).stem, **parse_toml(text, where)}
    task, problems = decode(InstructionTask, table, "")
    if task is None or problems:
        raise SettingsError(problems, where)
    return task


def find_task(word: str) -> tuple[InstructionTask, Path | None]:
    """A shipped task of that name, or that of a .toml file and the file's folder.

    Raises:
        UserError: no such task, or its settings are wrong.
    """
    shipped = shipped_instruction_tasks()
    if word in shipped:
        return shipped[word], None
    if word.lower().endswith(".toml"):
        path = Path(word).expanduser()
        return read_task(read_text(path, MOST_TOML), str(path)), path.parent
    near = difflib.get_close_matches(word, shipped, n=1)
    fix = f"did you mean {near[0]}? " if near else ""
    fix += f"The tasks here: {', '.join(shipped)}; or name a .toml file"
    raise UserError(f"{word}: no such task of instructions", fix)


def task_files(task: InstructionTask, folders: Sequence[Path]) -> list[Path]:
    """The files that a task's examples are read from.

    Raises:
        UserError: one is in none of the folders.
    """
    if task.labelled:
        return locate_task(_labelled(task, folders), folders).files
    return [found_file(task.file, folders)]


def found_file(name: str, folders: Sequence[Path]) -> Path:
    """The first file of that path, or of its last part: the user may name the inner folder.

    Raises:
        UserError: none has it.
    """
    for folder in folders:
        for path in (folder / Path(name).expanduser(), folder / Path(name).name):
            if is_there(path):
                return path
    looked = ", ".join(dict.fromkeys(map(str, folders)))
    fix = "name the folder it is in: data in the recipe, or the environment variable LMSMITH_DATA"
    raise UserError(f"{name}: not in any of {looked}", fix)


def _labelled(task: InstructionTask, folders: Sequence[Path]) -> str:
    """A labelled task's name, or the path of its file."""
    if not task.labelled.lower().endswith(".toml"):
        return task.labelled
    return os.fspath(found_file(task.labelled, folders))


def read_task_texts(task: InstructionTask, folders: Sequence[Path]) -> TaskTexts:
    """All examples of a task; a file without parts of its own is parted by a hash of its texts.

    Raises:
        UserError: a file is missing or damaged, or a template names a text that is not there.
    """
    found = _of_labelled(task, folders) if task.labelled else _of_file(task, folders)
    names = {*found.train[0].fields, *ALWAYS} if found.train else set()
    for template in task.templates:
        if names and (unknown := template.names - names):
            fix = f"there is {', '.join(sorted(names))}"
            problem = f"task {task.name}: a template names {{{min(unknown)}}}"
            raise UserError(f"{problem}: {template.prompt[:80]!r}", fix)
        if template.words and set(template.words) != set(found.labels):
            expected = f"every label: {', '.join(found.labels)}"
            raise UserError(f"task {task.name}: a template's words are not of {expected}")
    return found


def _of_labelled(task: InstructionTask, folders: Sequence[Path]) -> TaskTexts:
    located = locate_task(_labelled(task, folders), folders)
    spec, read = located.task, read_examples(located)
    if len(task.names or spec.texts) != len(spec.texts):
        raise UserError(f"task {task.name}: names must be {len(spec.texts)} names")
    if read.labels and task.words and set(task.words) != set(read.labels):
        raise UserError(
            f"task {task.name}: words has {', '.join(task.words)}",
            f"give each label its answer: {', '.join(read.labels)}",
        )

    def of(examples: Sequence[Example]) -> list[LabelledExample]:
        return [_texts_of(task, spec, read.labels, example) for example in examples]

    train, validation, test = of(read.train), of(read.validation), of(read.test)
    if not validation:
        share = {"validation": SHARES["validation"]}
        validation = [each for each in train if _split(each, share)]
        train = [each for each in train if not _split(each, share)]
    labels = () if spec.numbers or spec.form == "multiple_choice" else read.labels
    return TaskTexts(task, labels, train, validation, test)


HIGHEST = 5
"""STS-B's scores end here; an answer is the nearest whole number."""


def _texts_of(
    task: InstructionTask, spec: LabelledTask, labels: Sequence[str], example: Example
) -> LabelledExample:
    fields = dict(zip(task.names or spec.texts, example.texts, strict=True))
    if spec.numbers:
        options = tuple(map(str, range(HIGHEST + 1)))
        if not 0 <= example.target <= HIGHEST:
            raise UserError(
                f"{example.where}: {example.target:g} is not from 0 to {HIGHEST}",
                f"the answers of task {task.name} are the whole numbers from 0 to {HIGHEST}: "
                "bring the column there, or give the task labels in place of numbers",
            )
        gold = int(example.target + 0.5)
    elif spec.form == "multiple_choice":
        options, gold = example.answers, example.label
    else:
        options, gold = tuple(task.words.get(label, label) for label in labels), example.label
    label = options[gold] if spec.numbers or not labels else labels[gold]
    return LabelledExample(fields, options, gold, options[gold], label)


def _of_file(task: InstructionTask, folders: Sequence[Path]) -> TaskTexts:
    path = found_file(task.file, folders)
    parts: dict[str, list[LabelledExample]] = {"": [], **{name: [] for name in SHARES}}
    for example in _read_file(task, path):
        parts[_split(example, SHARES)].append(example)
    return TaskTexts(task, (), parts[""], parts["validation"], parts["test"])


def _split(example: LabelledExample, shares: Mapping[str, float]) -> str:
    """The part of an example by its first text, so that questions on one passage stay together."""
    return split_of(next(iter(example.fields.values())), shares) or ""


def _read_file(task: InstructionTask, path: Path) -> Iterator[LabelledExample]:
    for where, row in read_rows(path):
        try:
            yield _example(task, row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            said = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{where}: {said}", f"fix the row, or the columns that task {task.name} names"
            ) from error


def _example(task: InstructionTask, row: Mapping[str, object]) -> LabelledExample:
    fields: dict[str, str] = {}
    for column, rule in task.fields.items():
        if not (found := re.fullmatch(rule, _text(row, column), re.DOTALL)):
            raise ValueError(f"{column} does not match {rule!r}")
        fields |= {name: text or "" for name, text in found.groupdict().items()}
    options: tuple[str, ...] = ()
    if task.contexts:
        fields["before"], options = _last_words(_list_of_texts(row[task.contexts]))
    elif task.options:
        options = _list_of_texts(row[task.options])
    if not options:
        answer = _text(row, task.answer)
        if not answer.strip():
            raise ValueError(f"{task.answer} is empty")
        return LabelledExample(fields, (), 0, answer)
    gold = row[task.gold]
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        raise ValueError(f"{task.gold} is {gold!r}, not 0 to {len(options) - 1}")
    return LabelledExample(fields, options, gold, options[gold])


def _text(row: Mapping[str, object], column: str) -> str:
    """A text, or a number as it is written."""
    value = row[column]
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError(f"{column} is {value!r}, no text"[:200])


def _list_of_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
        raise TypeError("the options are no list of two or more texts")
    return tuple(value)


def _last_words(sentences: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(what the sentences begin with alike, the words in which each ends)."""
    words = [sentence.split() for sentence in sentences]
    same = 0
    while same < min(map(len, words)) - 1 and len({each[same] for each in words}) == 1:
        same += 1
    return " ".join(words[0][:same]), tuple(" ".join(each[same:]) for each in words)
