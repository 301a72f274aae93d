"""A task of the user's own, from a description and a few examples, as a function of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.calibration import choice_probabilities
from lmsmith.evaluation.evaluator import METHODS, Setting, ask
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSpec

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def classification(name: str, about: str, labels: Sequence[str], file: str) -> TaskSpec:
    """The task of giving a text one of the labels; a row has ``input`` and ``label``.

    Raises:
        UserError: the name is none for a file, or there are fewer than two different labels.
    """
    check_name(name)
    if len(set(labels)) < 2 or not all(label.strip() for label in labels):
        raise UserError(f"labels {', '.join(labels) or '(none)'}", "name two or more")
    return TaskSpec(
        name,
        "multiple_choice",
        DataSpec(file=file),
        about=about,
        prompt=PromptSpec(
            instruction=_as_template(about),
            context="Input: {{ input }}\nLabel:",
            choices=repr(list(labels)),
            gold=f"{list(labels)!r}.index(label)",
            answer_context="Label:",
        ),
    )


def extraction(name: str, about: str, file: str, max_new_tokens: int = 64) -> TaskSpec:
    """The task of writing a line about a text; a row has ``input`` and ``output``."""
    check_name(name)
    return TaskSpec(
        name,
        "free_form",
        DataSpec(file=file),
        about=about,
        prompt=PromptSpec(
            instruction=_as_template(about),
            context="Input: {{ input }}\nOutput:",
            target="{{ output }}",
        ),
        answer=AnswerSpec(max_new_tokens=max_new_tokens, stop=("\n",)),
    )


def check_name(name: str) -> None:
    """Raises UserError if a task cannot be called so."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: no name for a task", "use a–z, 0–9, _ and -")


def _as_template(text: str) -> str:
    """A text that a template gives back as it is."""
    return "{% raw %}" + text.replace("endraw", "end raw") + "{% endraw %}"


class TextFunction:
    """A task with its examples, put to any texts.

    Args:
        subject: the model.
        task: made by `classification` or `extraction`.
        examples: shown before every text, the same ones in the same order, as many as fit.

    Attributes:
        cut: texts of which only the end was read, since the context holds no more.
    """

    def __init__(self, subject: EvaluatedModel, task: TaskSpec, examples: Sequence[Item]) -> None:
        self._subject, self._task, self._examples = subject, task, tuple(examples)
        self.cut = 0

    def __call__(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """For each text its label with every label's probability, or the line written."""
        if not inputs:
            return []
        questions = [self.question(text, number) for number, text in enumerate(inputs)]
        method = METHODS[self._task.kind](self._subject, self._task, questions, 0)
        rows = list(method.answer(range(len(questions))))
        self.cut += sum(row["truncated"] > 0 for row in rows)
        return [self._answer(text, row) for text, row in zip(inputs, rows, strict=True)]

    def question(self, text: str, number: int = 0) -> Question:
        """What the model is asked about a text: the description, the examples that fit, the text.

        Args:
            number: of the text, by which its chance is told from the others'.
        """
        item = Item(str(number), self._filler() | {"input": text}, "input")
        setting = Setting(shots=None, fixed=True)
        return ask(self._subject, self._task, setting, item, self._examples)

    def _filler(self) -> dict[str, str]:
        """What stands for the answer that is not known; it is not shown to the model."""
        if self._task.kind == "free_form":
            return {"output": "?"}
        return {"label": str(self._examples[0].fields["label"])} if self._examples else {}

    def _answer(self, text: str, row: dict[str, Any]) -> dict[str, Any]:
        if self._task.kind == "free_form":
            return {"input": text, "output": row["answer"]}
        labels = [choice["text"] for choice in row["choices"]]
        return labelled(text, labels, row["scores"][self._task.measure])


def labelled(text: str, labels: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    """A text with its likeliest label, and every label's probability by their scores."""
    chances = [round(float(p), 6) for p in choice_probabilities(scores)]
    best = max(range(len(labels)), key=scores.__getitem__)
    return {
        "input": text,
        "label": labels[best],
        "probability": chances[best],
        "probabilities": dict(zip(labels, chances, strict=True)),
    }
