"""Served classifiers: fine-tuned models as tasks of ``/v1/tasks``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lmsmith.catalogue.classifiers import find_classifier, read_classifier
from lmsmith.core.errors import UserError
from lmsmith.corpus.labelled.task import Example
from lmsmith.evaluation.classifier_function import ClassifierFunction, Input
from lmsmith.server.errors import ApiError, bad_request
from lmsmith.server.models import name_and_model
from lmsmith.server.one_at_a_time import MOST_CHARACTERS, OneAtATime
from lmsmith.server.requests import Limits
from lmsmith.training.machine import ResolvedMachine


class ServedClassifier:
    """A classifier under the name of its task, and the queue before it."""

    def __init__(self, name: str, function: ClassifierFunction) -> None:
        self.name, self.function = name, function
        self._queue = OneAtATime(name)

    def described(self) -> dict[str, Any]:
        """Its entry in the list of tasks."""
        config = self.function.model.config
        return {
            "id": self.name,
            "object": "task",
            "about": f"Fine-tuned for {config.task}.",
            "kind": "classifier",
            "fields": list(self.function.fields),
            "labels": list(config.labels),
        }

    async def classify(
        self, inputs: Sequence[Input], limits: Limits, *, is_list: bool
    ) -> tuple[list[dict[str, Any]], int]:
        """A row an input, and the number of tokens read.

        Raises:
            ApiError: an input has not the task's texts, or is too long (400), the queue is full
                (429), or the time is over (504).
        """
        return await self._queue.run(limits, partial(self._rows, inputs, is_list))

    def _rows(self, inputs: Sequence[Input], is_list: bool) -> tuple[list[dict[str, Any]], int]:
        examples = [
            self._example(given, f"inputs[{number}]" if is_list else "input")
            for number, given in enumerate(inputs)
        ]
        encoded = self.function.encode(examples)
        tokens = sum(len(sequence) for each in encoded for sequence in each.sequences)
        return self.function.answers(inputs, examples, encoded), tokens

    def _example(self, given: Input, param: str) -> Example:
        try:
            example = self.function.example(given)
        except UserError as error:
            raise bad_request(error, param) from error
        count, most = sum(map(len, (*example.texts, *example.answers))), self._most_characters
        if count > most:
            problem = f"{param}: {count:,} characters, of which {most:,} are read; shorten it"
            raise ApiError(400, problem, param=param, code="context_length_exceeded")
        return example

    @property
    def _most_characters(self) -> int:
        return MOST_CHARACTERS * self.function.context


def divide_classifiers(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Other models, and classifiers."""
    classifying = [word for word in words if _is_classifier(word)]
    return [word for word in words if word not in classifying], classifying


def _is_classifier(word: str) -> bool:
    try:
        return find_classifier(_name_and_model(word)[1]) is not None
    except UserError:
        return False  # its reader says what is wrong


def _name_and_model(word: str) -> tuple[str, str]:
    """Both of ``NAME=MODEL``; no name of a model alone: a run's language model is another one."""
    return ("", word) if Path(word).exists() or "=" not in word else name_and_model(word)


def read_classifiers(
    words: Iterable[str], machine: ResolvedMachine, taken: Iterable[str]
) -> Mapping[str, ServedClassifier]:
    """Classifiers by the name that is given (NAME=MODEL), else by their task's.

    Args:
        taken: names of other models.

    Raises:
        UserError: one cannot be read, or its name is taken.
    """
    found: dict[str, ServedClassifier] = {}
    names = set(taken)
    for word in words:
        name, model = _name_and_model(word)
        function = ClassifierFunction(read_classifier(model), machine)
        name = name or function.task
        if name in names:
            raise UserError(f"two models are called {name}", f"name one: other={model}")
        names.add(name)
        found[name] = ServedClassifier(name, function)
    return found
