"""A task in one template, as files of demonstrations to learn from and of items to measure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmsmith.core.config import MOST_TOML, parse_toml
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_text, write_jsonl
from lmsmith.corpus.instructions.task import (
    InstructionTask,
    find_task,
    read_task_texts,
    task_files,
)
from lmsmith.corpus.instructions.template import LabelledExample, Template, fill
from lmsmith.corpus.labelled.task import locate_task
from lmsmith.corpus.sources import PACKAGE_PREFIX, TALKS
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.stages.flan import FlanConfig, as_conversation, measured_rows


@dataclass(frozen=True)
class LocatedInstructions:
    """A task and the folders of its files.

    Attributes:
        own: the task's own file, if it is none of the shipped ones.
    """

    task: InstructionTask
    folders: list[Path]
    own: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All files that the task reads."""
        own = [self.own] if self.own else []
        return [*own, *task_files(self.task, self.folders)]


def is_task_file(word: str) -> bool:
    """Whether a word is a task's name or .toml file, and not a file or folder of conversations."""
    talks = word.startswith(PACKAGE_PREFIX) or word.lower().endswith(TALKS)
    return not (talks or Path(word).is_dir())


def locate_instructions(word: str, folders: Sequence[Path]) -> LocatedInstructions:
    """The task of a name or a .toml file: one of templates, or one of ``lmsmith finetune``.

    A task of finetune has one template, which writes its texts with their names.

    Raises:
        UserError: no such task, wrong settings, or a file is in none of the folders.
    """
    own = Path(word).expanduser() if word.lower().endswith(".toml") else None
    if own is None or "templates" in parse_toml(read_text(own, MOST_TOML), str(own)):
        task, _ = find_task(word)
    else:
        labelled = locate_task(word, folders).task
        prompt = "\n".join(f"{name}: {{{name}}}" for name in labelled.texts)
        task = InstructionTask("own", (Template(prompt),), labelled.name, str(own.absolute()))
    return LocatedInstructions(task, [*([own.parent] if own else []), *folders], own)


def write_rows(
    located: LocatedInstructions,
    out: Path,
    seed: int,
    *,
    template: int,
    options: bool,
    examples: int,
    test_examples: int,
) -> dict[str, float]:
    """Write ``demonstrations.jsonl``, ``validation.jsonl`` and ``test.jsonl`` into a folder.

    The rows of the last are ``query``, ``choices`` and ``gold``, as `lmsmith eval` reads them. A
    task without test examples is measured on those for validation.

    Args:
        template: number of the task's template.
        options: whether the answers to choose from are appended.
        examples: learn from so many, drawn by the seed; 0 takes all.
        test_examples: most that are measured.

    Raises:
        UserError: the task has no such template, or nothing to learn or to choose from.
    """
    task = located.task
    if template >= len(task.templates):
        raise UserError(
            f"template = {template}: task {task.name} has {len(task.templates)}",
            f"take 0 to {len(task.templates) - 1}",
        )
    form = task.templates[template]
    if form.turned:
        raise UserError(
            f"template = {template}: it turns task {task.name} around, so there is no answer to "
            "choose",
            "take another",
        )
    texts = read_task_texts(task, located.folders)
    texts = texts if texts.test else replace(texts, test=texts.validation)

    def written(part: Sequence[LabelledExample]) -> list[dict[str, object]]:
        filled = (fill(form, e, texts.labels, options=options) for e in part if form.fits(e))
        name = f"template {template}"
        return [as_conversation(task.name, n, (name, each)).row() for n, each in enumerate(filled)]

    train = list(texts.train)
    random.Random(derive_seed(seed, "examples")).shuffle(train)
    learnt, held_out = written(train[: examples or len(train)]), written(texts.validation)
    measuring = FlanConfig(options=options, test_examples=test_examples)
    measured = list(measured_rows(texts, [(template, form)], measuring, seed))
    if not learnt or not measured:
        missing = (
            "nothing to learn from" if not learnt else "no test example with answers to choose"
        )
        raise UserError(f"task {task.name} has {missing}", "name another task")
    write_jsonl(out / "demonstrations.jsonl", learnt)
    write_jsonl(out / "validation.jsonl", held_out)
    write_jsonl(out / "test.jsonl", measured)
    return {
        "train_examples": float(len(learnt)),
        "validation_examples": float(len(held_out)),
        "test_examples": float(len(measured)),
    }
