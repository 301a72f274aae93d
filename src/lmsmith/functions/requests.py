"""A text function as requests to a scheduler that others use too, and its answers from replies.

What `TextFunction` computes by itself, in batches, is asked here of an engine that answers many:
the text with its examples is a prompt, and each label a reply whose tokens are given, so that the
prompt is read once, in the pieces in which the scheduler reads any. The labels' probabilities are
the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.evaluator import TextFunction, labelled
from lmsmith.evaluation.methods.free_form import AnswerReader
from lmsmith.evaluation.methods.likelihood import Likelihood
from lmsmith.evaluation.methods.multiple_choice import choice_scores
from lmsmith.evaluation.methods.writing import writing_requests
from lmsmith.evaluation.model import EvaluatedModel, Pair
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.generation.requests import Reply, Request
from lmsmith.generation.settings import SamplingSettings


class TooLong(UserError):
    """A text does not fit the context with the task's description and its answer."""


@dataclass(frozen=True)
class AskedText:
    """A text as requests.

    Attributes:
        text: what was given.
        question: as it is put.
        requests: to be answered, in any order.
        scored: of labels, for each request how many of each reply's last tokens are the label's.
    """

    text: str
    question: Question
    requests: tuple[Request, ...]
    scored: tuple[tuple[int, ...], ...] = ()


class FunctionRequests:
    """A task of the user's own, to be put to a model that a scheduler runs.

    Args:
        subject: the model's tokenizer and context; nothing is computed with it here.
        task: made by `classification` or `extraction`.
        examples: shown before every text, as many as fit.
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
            raise UserError(
                f"task {task.name}: it is no function of one pass over a text",
                "run it by lmsmith eval",
            )
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
            return self._to_be_written(text, question, keep)
        groups = [question.pairs]
        if self._task.measure == "accuracy_unconditional":
            alone = self._task.prompt.answer_context
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
        """What `TextFunction` gives for the text, from the replies to its requests."""
        question = asked.question
        if self._reader is not None:
            row = self._reader.row(question, [reply.text for reply in replies[0]], [], 0)
            return {"input": asked.text, "output": row.answer}
        found = list(_likelihoods(replies, asked.scored))
        count = len(question.choices)
        scores = choice_scores(question.choices, found[:count], found[count:])
        rounded = [round(score, 6) for score in scores[self._task.measure]]
        return labelled(asked.text, question.choices, rounded)

    def _to_be_written(self, text: str, question: Question, keep: bool) -> AskedText:
        prompts = self._subject.encode_contexts([question.to_continue])
        (request,), (cut,) = writing_requests(
            self._subject, self._task.answer, 0, prompts, [int(question.id)]
        )
        if cut:
            raise self._too_long()
        named = Request(request.prompt, request.settings, "the text", request.stream, keep=keep)
        return AskedText(text, question, (named,))

    def _too_long(self) -> TooLong:
        return TooLong(
            f"the text and the description of {self._task.name} come to more tokens than the "
            f"context of {self._subject.context}",
            "shorten the text",
        )


def _scoring(pairs: Sequence[Pair], *, keep: bool) -> Request:
    """How likely each pair's end is: what all begin with is the prompt, the rest is given."""
    first = pairs[0].tokens
    shared = min(len(pair.tokens) - pair.scored for pair in pairs)
    while any(pair.tokens[:shared] != first[:shared] for pair in pairs):
        shared -= 1
    forced = tuple(pair.tokens[shared:] for pair in pairs)
    settings = SamplingSettings(
        max_new_tokens=max(map(len, forced)),
        temperature=0.0,
        samples=len(pairs),
        log_probs=True,
    )
    return Request(list(first[:shared]), settings, "the text", forced=forced, keep=keep)


def _likelihoods(
    replies: Sequence[Sequence[Reply]], scored: Sequence[Sequence[int]]
) -> Iterator[Likelihood]:
    for each, counts in zip(replies, scored, strict=True):
        for reply, count in zip(each, counts, strict=True):
            yield Likelihood(tuple(p.log_prob for p in reply.log_probs[-count:]), False, False)
