"""A task as a function of texts: on its own, or as requests to a scheduler that others use too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.calibration import choice_probabilities
from lmsmith.evaluation.methods.likelihood import Likelihood, MultipleChoice, choice_scores
from lmsmith.evaluation.methods.writing import (
    AnswerReader,
    FreeForm,
    LeastToMost,
    free_form_method,
    writing_requests,
)
from lmsmith.evaluation.model import Continuation, EvaluatedModel
from lmsmith.evaluation.rows import AnswerRow, ChoiceRow
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import Question, choose_shots, with_shots
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSetting, TaskSpec
from lmsmith.generation.prefix_cache import common_length
from lmsmith.generation.requests import Reply, Request
from lmsmith.generation.settings import SamplingSettings

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def classification(name: str, about: str, labels: Sequence[str], file: str) -> TaskSpec:
    """The task of giving a text one of the labels; a row has ``input`` and ``label``.

    Raises:
        UserError: the name is none for a file, or there are fewer than two different labels.
    """
    check_name(name)
    if len(set(labels)) < 2 or not all(label.strip() for label in labels):
        raise UserError(f"labels {', '.join(labels) or '(none)'}", "name two or more")
    prompt = PromptSpec(
        instruction=_as_template(about),
        context="Input: {{ input }}\nLabel:",
        choices=repr(list(labels)),
        gold=f"{list(labels)!r}.index(label)",
        answer_context="Label:",
    )
    return TaskSpec(name, "multiple_choice", DataSpec(file=file), about=about, prompt=prompt)


def extraction(name: str, about: str, file: str, max_new_tokens: int = 64) -> TaskSpec:
    """The task of writing a line about a text; a row has ``input`` and ``output``."""
    check_name(name)
    prompt = PromptSpec(
        instruction=_as_template(about),
        context="Input: {{ input }}\nOutput:",
        target="{{ output }}",
    )
    answer = AnswerSpec(max_new_tokens=max_new_tokens, stop=("\n",))
    data = DataSpec(file=file)
    return TaskSpec(name, "free_form", data, about=about, prompt=prompt, answer=answer)


def check_name(name: str) -> None:
    """Raises UserError if a task cannot be called so."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: no name for a task", "use a–z, 0–9, _ and -")


def _as_template(text: str) -> str:
    """A template that gives the text back."""
    return "{% raw %}" + text.replace("endraw", "end raw") + "{% endraw %}"


class TextFunction:
    """A task with its examples, put to any texts.

    Args:
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
        method: MultipleChoice | FreeForm | LeastToMost
        if self._task.kind == "free_form":
            method = free_form_method(self._model, self._task, questions)
        else:
            method = MultipleChoice(self._model, questions, self._task.answer_context)
        rows: list[ChoiceRow | AnswerRow] = list(method.answer(range(len(questions))))
        self.cut += sum(row.truncated > 0 for row in rows)
        return [self._answer(text, row) for text, row in zip(inputs, rows, strict=True)]

    def question(self, text: str, number: int = 0) -> Question:
        """The description, the examples that fit, the text.

        Args:
            number: of the text; each number has random draws of its own.
        """
        known = {"input": text}  # and an answer, which is not shown to the model
        if self._task.kind == "free_form":
            known["output"] = "?"
        elif self._examples:
            known["label"] = str(self._examples[0].fields["label"])
        item = Item(str(number), known, "input")
        setting = TaskSetting(shots=None, fixed=True)
        shots = choose_shots(self._model, self._task, setting, item, self._examples)
        return with_shots(self._task, item, shots)

    def _answer(self, text: str, row: ChoiceRow | AnswerRow) -> dict[str, Any]:
        if isinstance(row, AnswerRow):
            return {"input": text, "output": row.answer}
        labels = [choice.text for choice in row.choices]
        return _labelled(text, labels, row.scores[self._task.measure])


def _labelled(text: str, labels: Sequence[str], scores: Sequence[float | None]) -> dict[str, Any]:
    """A text with its likeliest label, and every label's probability by their scores."""
    probabilities = choice_probabilities(scores)
    best = int(probabilities.argmax())
    chances = [round(float(p), 6) for p in probabilities]
    return {
        "input": text,
        "label": labels[best],
        "probability": chances[best],
        "probabilities": dict(zip(labels, chances, strict=True)),
    }


class TooLong(UserError):
    """A text does not fit the context with the task's description and its answer."""


@dataclass(frozen=True)
class AskedText:
    """A text as requests.

    Attributes:
        requests: to be answered, in any order.
        scored: of labels, for each request how many of each reply's last tokens are the label's.
    """

    text: str
    question: Question
    requests: tuple[Request, ...]
    scored: tuple[tuple[int, ...], ...] = ()


class FunctionRequests:
    """A text function for a model that a scheduler runs: its answers equal `TextFunction`'s.

    The text with its examples is a prompt, and each label a reply whose tokens are given, so that
    the prompt is read once.

    Args:
        subject: the model's tokenizer and context; nothing is computed with it here.
        rows: most replies to one request.

    Raises:
        UserError: the task is answered in a way that takes more than one pass, or by beams.
    """

    def __init__(
        self, subject: EvaluatedModel, task: TaskSpec, examples: Sequence[Item], rows: int
    ) -> None:
        answer = task.answer
        plain = not (answer.reason or task.decompose.context or answer.search == "beam")
        if task.kind == "multiple_choice":
            plain = not task.prompt.contexts
        if task.kind not in ("multiple_choice", "free_form") or not plain:
            problem = f"task {task.name}: it is no function of one pass over a text"
            raise UserError(problem, "run it by lmsmith eval")
        self._subject, self._task, self._rows = subject, task, rows
        self._function = TextFunction(subject, task, examples)
        self._reader = AnswerReader(answer, task.measure) if task.kind == "free_form" else None

    def asked(self, text: str, number: int = 0, *, keep: bool = True) -> AskedText:
        """A text as requests.

        Args:
            number: of the text; each number has random draws of its own.
            keep: whether the engine keeps what it read for the texts to come.

        Raises:
            TooLong: it does not fit the context, even without examples.
            UserError: the task's templates ask for more than a text.
        """
        question = self._function.question(text, number)
        if self._reader is not None:
            prompts = self._subject.encode_contexts([question.to_continue])
            (request,), (cut,) = writing_requests(
                self._subject, self._task.answer, 0, prompts, [int(question.id)]
            )
            if cut:
                raise self._too_long()
            named = Request(request.prompt, request.settings, "the text", request.stream, keep=keep)
            return AskedText(text, question, (named,))
        groups = [question.pairs]
        if (alone := self._task.answer_context) is not None:
            groups.append([(alone, choice) for _, choice in question.pairs])
        requests: list[Request] = []
        scored: list[tuple[int, ...]] = []
        for group in groups:
            pairs = self._subject.encode_pairs(group)
            if max(len(pair.tokens) + pair.truncated for pair in pairs) > self._subject.context:
                raise self._too_long()
            for start in range(0, len(pairs), self._rows):
                part = pairs[start : start + self._rows]
                requests.append(_scoring(part, keep=keep and not requests))
                scored.append(tuple(pair.scored for pair in part))
        return AskedText(text, question, tuple(requests), tuple(scored))

    def answer(self, asked: AskedText, replies: Sequence[Sequence[Reply]]) -> dict[str, Any]:
        """The answer of `TextFunction` to the text, from the replies to its requests."""
        question = asked.question
        if self._reader is not None:
            texts = [reply.text for reply in replies[0]]
            (row,) = self._reader.rows([question], [texts], [[]], [0])
            return {"input": asked.text, "output": row.answer}
        found = list(_likelihoods(replies, asked.scored))
        count = len(question.choices)
        scores = choice_scores(question.choices, found[:count], found[count:])
        rounded = [round(score, 6) for score in scores[self._task.measure]]
        return _labelled(asked.text, question.choices, rounded)

    def _too_long(self) -> TooLong:
        return TooLong(
            f"the text and the description of {self._task.name} come to more tokens than the "
            f"context of {self._subject.context}",
            "shorten the text",
        )


def _scoring(pairs: Sequence[Continuation], *, keep: bool) -> Request:
    """The likelihood of each continuation: the prompt is what all begin with, the rest is given."""
    first = pairs[0].tokens
    shared = min(common_length(first, pair.context) for pair in pairs)
    forced = tuple(pair.tokens[shared:] for pair in pairs)
    most = max(map(len, forced))
    settings = SamplingSettings(most, temperature=0.0, samples=len(pairs), log_probs=True)
    return Request(list(first[:shared]), settings, "the text", forced=forced, keep=keep)


def _likelihoods(
    replies: Sequence[Sequence[Reply]], scored: Sequence[Sequence[int]]
) -> Iterator[Likelihood]:
    for each, counts in zip(replies, scored, strict=True):
        for reply, count in zip(each, counts, strict=True):
            yield Likelihood(tuple(p.log_prob for p in reply.log_probs[-count:]), False, False)
