"""The shots' labels: as they are, or others in their place, to see what a model takes from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.generated import common_words
from lmsmith.evaluation.tasks.prompts import (
    STREAM,
    Question,
    id_number,
    prepare,
    with_shots,
    write_question,
)
from lmsmith.evaluation.tasks.spec import Labels, TaskSetting, TaskSpec
from lmsmith.evaluation.tasks.templates import BATCH

MOST_LABELS = 32
"""A task with more different choices than this has no labels, but answers of each item's own."""


class ShownLabels:
    """The shots with other answers in place of theirs (Min et al. 2022, sections 4 and 5).

    - ``gold``: its right answer;
    - ``random``: one of its choices, all equally likely; without choices, another example's answer;
    - ``words``: one of as many random English words as it has choices: another label space, while
      the item itself keeps its own;
    - ``none``: nothing, the inputs alone;
    - ``renamed``: each label has a random English word for a name, in the shots and in the item
      alike, so that only the mapping can help (Wei et al. 2023, section 4).

    Args:
        pool: all examples.
        fixed: shots have the same label for all items, as they themselves are the same.

    Raises:
        UserError: the task's examples have no label that could be put in another's place.
    """

    def __init__(
        self, task: TaskSpec, pool: Sequence[Item], kind: Labels, seed: int, *, fixed: bool = False
    ) -> None:
        self._task, self._pool, self._kind = task, pool, kind
        self._seed, self._fixed = seed, fixed
        self._names: dict[str, str] = {}
        if kind == "gold":
            return
        prompt = task.prompt
        if prompt.contexts or prompt.pattern or prompt.demonstrations or task.kind == "perplexity":
            problem = f"task {task.name}: its examples have no labels to be replaced"
            raise UserError(problem, "use a task whose answers follow the context")
        if kind == "renamed":
            self._names = self._new_names()

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        """The item with its shots before it, and their answers replaced."""
        return self.asked(with_shots(self._task, item, shots, self.answers(item, shots)))

    def answers(self, item: Item, shots: Sequence[Item]) -> list[str | None]:
        """The answer that each shot shows; None for its right one, "" for none."""
        return [self._answer(item, shot) for shot in shots]

    def asked(self, question: Question) -> Question:
        """The question with its choices by their new names."""
        if not self._names:
            return question
        choices = tuple(self._names[choice] for choice in question.choices)
        return replace(question, choices=choices, answers=(choices[question.gold],))

    def _answer(self, item: Item, shot: Item) -> str | None:
        if self._kind == "gold":
            return None
        if self._kind == "none":
            return ""
        question = write_question(self._task, shot)
        if self._kind == "renamed":
            return self._names[question.choices[question.gold]]
        key = [self._seed, STREAM, id_number(shot.id), 0 if self._fixed else id_number(item.id) + 1]
        generator = np.random.default_rng(key)
        has_choices = self._task.kind == "multiple_choice"
        if self._kind == "words":
            words = self._words(len(question.choices) if has_choices else len(self._pool))
            return words[int(generator.integers(len(words)))]
        if has_choices:
            return question.choices[int(generator.integers(len(question.choices)))]
        other = self._pool[int(generator.integers(len(self._pool)))]
        return write_question(self._task, other).choices[0]

    def _words(self, count: int, without: frozenset[str] = frozenset()) -> list[str]:
        known = [word for word in common_words() if word not in without]
        order = np.random.default_rng([self._seed, STREAM]).permutation(len(known))
        return [known[int(place)] for place in order[:count]]

    def _new_names(self) -> dict[str, str]:
        found: set[str] = set()
        if self._task.kind == "multiple_choice":
            for number, item in enumerate(self._pool):
                if number % BATCH == 0:
                    prepare(self._task, TaskSetting(), self._pool[number : number + BATCH], ())
                found |= set(write_question(self._task, item).choices)
                if len(found) > MOST_LABELS:
                    break
        if not 2 <= len(found) <= MOST_LABELS:
            problem = f"task {self._task.name}: no labels that all items share, so none to rename"
            raise UserError(problem, "use a classification task")
        labels = sorted(found)
        return dict(zip(labels, self._words(len(labels), frozenset(labels)), strict=True))


def has_shared_labels(task: TaskSpec, pool: Sequence[Item]) -> bool:
    """Whether the task is a classification: its labels can be renamed."""
    try:
        ShownLabels(task, pool, "renamed", 0)
    except UserError:
        return False
    return True
