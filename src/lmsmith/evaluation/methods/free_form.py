"""Answers in the model's own words: greedy, by beams, by a vote of samples, or part by part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lmsmith.evaluation.methods.answers import (
    NORMALISERS,
    OVERLAPS,
    exact_match,
    extract_answer,
    vote,
    word_f1,
)
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.prompts import Question, item_fields, write_part
from lmsmith.evaluation.tasks.spec import AnswerSpec, TaskSpec


class FreeForm:
    """Writes answers, and compares them with the right ones.

    With ``reason`` it asks twice (Kojima et al. 2022, section 3): the question and the trigger,
    from which the model reasons; then all that and the extraction prompt, from which it answers.
    With several samples the commonest answer is taken.

    ``exact_match`` is by the task's normalisation, ``f1`` by SQuAD's; ``bleu`` and ``rouge_l``
    are measured where they are the task's headline.
    """

    def __init__(
        self, subject: EvaluatedModel, task: TaskSpec, questions: Sequence[Question], seed: int = 0
    ) -> None:
        self._subject, self._questions = subject, questions
        self._reader = AnswerReader(task)
        self._spec: AnswerSpec = task.answer
        self._delimiter = task.prompt.delimiter.rstrip(" ")
        begun = [question.contexts[0] + self._delimiter for question in questions]
        if self._spec.reason:
            begun = [f"{context} {self._spec.reason}" for context in begun]
        self._contexts = begun
        self._prompts = subject.encode_contexts(begun)
        self._writer = Writer(subject, task.answer, seed)
        self._writer.cache_prefix(self._prompts)

    @property
    def tokens(self) -> list[int]:
        """Of each question, prompt and answers."""
        spec = self._spec
        written = (spec.reason_tokens if spec.reason else spec.max_new_tokens) * spec.samples
        return [len(prompt) + written for prompt in self._prompts]

    def answer(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows of the questions of these numbers."""
        spec = self._spec
        room = spec.reason_tokens if spec.reason else spec.max_new_tokens
        stops = () if spec.reason else spec.stop
        prompts = [self._prompts[number] for number in numbers]
        ids = [int(self._questions[number].id) for number in numbers]
        texts, cut = self._writer.write(prompts, ids, room, stops, spec.samples)
        reasons: list[list[str]] = [[] for _ in numbers]
        if spec.reason:
            reasons, (texts, _) = texts, self._conclude(numbers, ids, texts)
        for place, number in enumerate(numbers):
            question = self._questions[number]
            yield self._reader.row(question, texts[place], reasons[place], cut[place])

    def _conclude(
        self, numbers: Sequence[int], ids: Sequence[int], reasons: Sequence[Sequence[str]]
    ) -> tuple[list[list[str]], list[int]]:
        """The second pass: an answer to each reasoning."""
        spec = self._spec
        asked = [
            f"{self._contexts[number]}{reason}\n{spec.extraction}"
            for number, each in zip(numbers, reasons, strict=True)
            for reason in each
        ]
        of_item = [n for n, each in zip(ids, reasons, strict=True) for _ in each]
        prompts = self._subject.encode_contexts(asked)
        found, cut = self._writer.write(
            prompts, of_item, spec.max_new_tokens, spec.stop, 1, greedy=True
        )
        flat = iter(found)
        return [[next(flat)[0] for _ in each] for each in reasons], cut


class AnswerReader:
    """What is read from the texts a model wrote, and how it compares with the right answers."""

    def __init__(self, task: TaskSpec) -> None:
        self._spec, self._measure = task.answer, task.measure
        self._overlap = OVERLAPS.get(task.measure)
        if self._overlap is not None:
            self._overlap(" ", [" "])  # says at once that its library is missing

    def row(
        self, question: Question, texts: Sequence[str], reasons: Sequence[str], cut: int
    ) -> dict[str, Any]:
        """An item's row.

        Args:
            texts: written as answers.
            reasons: written before them.
            cut: tokens that the prompt lost.
        """
        normalise = NORMALISERS[self._spec.normalise]
        answers = [extract_answer(text, self._spec) for text in texts]
        given = vote(answers, normalise) if len(answers) > 1 else answers[0]
        metrics: dict[str, Any] = {
            "exact_match": exact_match(given, question.answers, normalise),
            "f1": word_f1(given, question.answers),
        }
        if self._overlap is not None:
            metrics[self._measure] = self._overlap(given, question.answers)
        return {
            **item_fields(question),
            "gold": question.answers[0],
            **({"reasoning": list(reasons)} if reasons else {}),
            "texts": list(texts),
            "answers": answers,
            "answer": given,
            "truncated": cut,
            "metrics": metrics,
        }


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
