"""Least-to-most: a question's parts first, each with the answers before it (Zhou et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lmsmith.evaluation.methods.free_form import AnswerReader
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.prompts import Question, write_part
from lmsmith.evaluation.tasks.spec import TaskSpec

BETWEEN = "\n\n"
"""Parts stand in paragraphs of their own."""


class LeastToMost:
    """Asks for a question's parts, then answers them in order, the question itself last.

    The first prompt is the task's worked decompositions and the item; what it names are the parts.
    Each part is then asked after the item and all parts before it with their answers, so that an
    answer stands on the earlier ones; the last answer is the item's.
    """

    def __init__(
        self, subject: EvaluatedModel, task: TaskSpec, questions: Sequence[Question], seed: int = 0
    ) -> None:
        self._subject, self._task, self._questions = subject, task, questions
        self._reader = AnswerReader(task)
        self._writer = Writer(subject, task.answer, seed)
        self._prompts = subject.encode_contexts([each.decompose for each in questions])

    @property
    def tokens(self) -> list[int]:
        """Of each question, prompt and answers."""
        spec = self._task.decompose
        written = spec.max_new_tokens + (spec.most + 1) * self._task.answer.max_new_tokens
        return [len(prompt) + written for prompt in self._prompts]

    def answer(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows of the questions of these numbers."""
        questions = [self._questions[number] for number in numbers]
        spec = self._task.decompose
        prompts = [self._prompts[number] for number in numbers]
        lists, cut = self._write(questions, prompts, spec.max_new_tokens, spec.stop)
        parts = [
            parts_of_question(text, question.last, spec.part, spec.most)
            for text, question in zip(lists, questions, strict=True)
        ]
        solved: list[list[str]] = [[] for _ in questions]
        said = [question.contexts[0] for question in questions]
        for turn in range(max(map(len, parts))):
            asking = [place for place, each in enumerate(parts) if len(each) > turn]
            for place in asking:
                said[place] += BETWEEN + write_part(self._task, parts[place][turn])
            answers, lost = self._write(
                [questions[place] for place in asking],
                self._subject.encode_contexts([said[place] for place in asking]),
                self._task.answer.max_new_tokens,
                self._task.answer.stop,
            )
            for place, text, each in zip(asking, answers, lost, strict=True):
                said[place] += f" {text.strip()}"
                solved[place].append(text)
                cut[place] = max(cut[place], each)
        for place, question in enumerate(questions):
            steps = [
                f"{write_part(self._task, part)} {text.strip()}"
                for part, text in zip(parts[place][:-1], solved[place][:-1], strict=True)
            ]
            texts = solved[place][-1:]
            yield self._reader.row(question, texts, [lists[place], *steps], cut[place])

    def _write(
        self,
        questions: Sequence[Question],
        prompts: Sequence[Sequence[int]],
        room: int,
        stops: Sequence[str],
    ) -> tuple[list[str], list[int]]:
        ids = [int(question.id) for question in questions]
        texts, cut = self._writer.write(prompts, ids, room, stops, 1)
        return [each[0] for each in texts], cut


def parts_of_question(text: str, last: str, rule: str, most: int) -> list[str]:
    """The parts that a text names, each once and at most so many, and the question itself last."""
    found = [match[1].strip() for match in re.finditer(rule, text) if match[1]]
    parts = [part for part in dict.fromkeys(found) if part and part != last]
    return [*parts[:most], last]
