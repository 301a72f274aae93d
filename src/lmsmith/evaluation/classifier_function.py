"""A fine-tuned classifier as a function of texts: what ``tasks run`` and the server answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmsmith.catalogue.classifiers import ReadClassifier
from lmsmith.core.errors import UserError
from lmsmith.corpus.labelled.task import Example
from lmsmith.evaluation.classification import answer_row
from lmsmith.training.classification import EncodedExample, encode_examples, predict
from lmsmith.training.machine import ResolvedMachine

Input = str | Mapping[str, Any]
"""A text, or the task's texts (and answers) by their names."""


class ClassifierFunction:
    """Texts → labels with every label's probability, or numbers, or the best of some answers.

    Attributes:
        cut: texts so far that were longer than the model reads.
    """

    def __init__(self, read: ReadClassifier, machine: ResolvedMachine) -> None:
        self.model, self.tokenizer = read.model, read.tokenizer
        self._machine = machine
        self.cut = 0

    @property
    def task(self) -> str:
        """The name of the task that it was fine-tuned for."""
        return self.model.config.task

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return self.model.config.length

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of an input's fields; with one alone, a text without a name is enough."""
        return (*self.model.config.texts, *self.model.config.answers)

    def __call__(self, inputs: Sequence[Input]) -> list[dict[str, Any]]:
        """A row an input, in their order: ``input`` and ``label``, ``probability``,
        ``probabilities``; or ``input`` and ``number``.

        Raises:
            UserError: an input has not the task's texts.
        """
        examples = [self.example(each) for each in inputs]
        encoded = self.encode(examples)
        self.cut += sum(each.cut for each in encoded)
        return self.answers(inputs, examples, encoded)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Examples as tokens; their number is the work that `answers` has."""
        return encode_examples(self.model, self.tokenizer, examples) if examples else []

    def answers(
        self,
        inputs: Sequence[Input],
        examples: Sequence[Example],
        encoded: Sequence[EncodedExample],
    ) -> list[dict[str, Any]]:
        """The rows of encoded examples."""
        logits = predict(self.model, encoded, self._machine) if encoded else []
        return [
            {"input": given, **answer_row(self.model, example.answers, logits_k)}
            for given, example, logits_k in zip(inputs, examples, logits, strict=True)
        ]

    def example(self, given: Input) -> Example:
        """An input as an example of the task.

        Raises:
            UserError: it has not the task's texts.
        """
        config = self.model.config
        if isinstance(given, str):
            if len(self.fields) != 1:
                raise UserError(f"a text alone, and {self._wanted}", self._fix)
            given = {config.texts[0]: given}
        texts = tuple(self._text(given, name) for name in config.texts)
        if len(config.answers) > 1:
            return Example(texts, tuple(self._text(given, name) for name in config.answers))
        if not config.answers:
            return Example(texts)
        found = given.get(config.answers[0])
        usable = isinstance(found, list) and len(found) > 1
        if not usable or not all(isinstance(each, str) and each.strip() for each in found or ()):
            raise UserError(f"{config.answers[0]}: no list of two texts or more", self._fix)
        return Example(texts, tuple(found or ()))

    def _text(self, given: Mapping[str, Any], name: str) -> str:
        text = given.get(name)
        if not isinstance(text, str) or not text.strip():
            what = "is empty" if isinstance(text, str) else "is no text, or is not there"
            raise UserError(f"{name!r} {what}; {self._wanted}", self._fix)
        return text

    @property
    def _wanted(self) -> str:
        return f"the task {self.task} reads {' and '.join(self.fields)}"

    @property
    def _fix(self) -> str:
        return "write {" + ", ".join(f'"{name}": …' for name in self.fields) + "}"
