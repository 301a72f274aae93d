"""Answers in the model's own words: greedy, by beams, by a vote of samples, or part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lmsmith.evaluation.methods.answers import (
    NORMALISERS,
    OVERLAPS,
    exact_match,
    extract_answers,
    vote,
    word_f1,
)
from lmsmith.evaluation.methods.likelihood import common_prefix
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import AnswerRow, Numbers
from lmsmith.evaluation.tasks.prompts import Question, write_part
from lmsmith.evaluation.tasks.spec import AnswerSpec, DecomposeSpec, TaskSpec
from lmsmith.evaluation.tasks.templates import SlowPattern, TaskTextError, find_all
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.requests import until_stop

STREAMS_AN_ITEM = 1 << 20
"""Random streams an item: sample i of item n uses stream n times this, plus i."""


def writing_requests(
    model: EvaluatedModel,
    spec: AnswerSpec,
    seed: int,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
) -> tuple[list[Request], list[int]]:
    """A task's prompts as requests, and the tokens each prompt lost to fit."""
    room = min(spec.max_new_tokens, model.context // 2)
    cut = [max(0, len(prompt) + room - model.context) for prompt in prompts]
    sampled = spec.search == "sample"
    settings = SamplingSettings(
        max_new_tokens=room,
        temperature=spec.temperature if sampled else 0.0,
        top_p=spec.top_p if sampled else 1.0,
        stop_tokens=model.tokenizer.stop_tokens,
        seed=seed,
        stop=tuple(spec.stop),
        samples=spec.samples,
    )
    requests = [
        Request(
            list(prompt[lost:]), settings, f"item {n}", n * STREAMS_AN_ITEM, is_message=model.chat
        )
        for prompt, lost, n in zip(prompts, cut, ids, strict=True)
    ]
    return requests, cut


class Writer:
    """Writes by a task's settings; an item's texts do not depend on the others."""

    def __init__(self, model: EvaluatedModel, seed: int) -> None:
        self._model, self._seed = model, seed
        self._engine = Engine(model.model, tokenizer=model.tokenizer)

    def cache_prefix(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read once the tokens that all prompts of a task begin with, as with fixed shots."""
        prefix = common_prefix(prompts)
        if len(prefix) < self._model.context:
            self._engine.cache_prefix(prefix)

    def write(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], spec: AnswerSpec
    ) -> tuple[list[list[str]], list[int]]:
        """Texts of each prompt, and the tokens it lost to fit with its answer."""
        requests, cut = writing_requests(self._model, spec, self._seed, prompts, ids)
        if spec.search == "beam":
            return [[self._beam(each)] for each in requests], cut
        return [[reply.text for reply in each] for each in answer(self._engine, requests)], cut

    def _beam(self, request: Request) -> str:
        tokenizer, settings = self._model.tokenizer, request.settings
        beams = BeamSettings(
            max_new_tokens=settings.max_new_tokens, stop_tokens=settings.stop_tokens
        )
        best = beam_search(self._model.decoder, request.prompt, beams, tokenizer=tokenizer)[0]
        before = () if self._model.chat else request.prompt
        text = tokenizer.decode(best.tokens, after=before)
        return "".join(until_stop(iter([text]), list(settings.stop)))


class WritingMethod:
    """The base of methods whose answers are written.

    Args:
        contexts: of the questions, to be continued.
        spec: how the first text of each is written.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        contexts: Sequence[str],
        spec: AnswerSpec,
        seed: int,
    ) -> None:
        self._model, self._questions, self._first = model, questions, spec
        self._prompts = model.encode_contexts(contexts)
        self._writer = Writer(model, seed)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each question's prompt and texts."""
        written = self._first.max_new_tokens * self._first.samples
        return [len(prompt) + written for prompt in self._prompts]

    def written(self, numbers: Sequence[int]) -> tuple[list[Question], list[list[str]], list[int]]:
        """The questions of these numbers, their texts, and the tokens each prompt lost."""
        questions = [self._questions[number] for number in numbers]
        prompts = [self._prompts[number] for number in numbers]
        ids = [int(question.id) for question in questions]
        return questions, *self._writer.write(prompts, ids, self._first)


def free_form_method(
    model: EvaluatedModel, task: TaskSpec, questions: Sequence[Question], seed: int = 0
) -> FreeForm | LeastToMost:
    """Answers part by part where the task breaks its questions up, else whole."""
    if task.decompose.context:
        return LeastToMost(model, questions, task.answer, task.decompose, task.measure, seed)
    return FreeForm(model, questions, task.answer, task.measure, seed)


class FreeForm(WritingMethod):
    """Writes answers, and compares them with the right ones.

    With ``reason`` it asks twice (Kojima et al. 2022, section 3): the question and the trigger,
    from which the model reasons; then all that and the extraction prompt, from which it answers.
    With several samples the commonest answer is taken.

    ``exact_match`` is by the task's normalisation, ``f1`` by SQuAD's; ``bleu`` and ``rouge_l``
    are measured if they are the task's headline.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        spec: AnswerSpec,
        measure: str = "exact_match",
        seed: int = 0,
    ) -> None:
        first, reason = spec, ""
        if spec.reason:
            first = replace(spec, max_new_tokens=spec.reason_tokens, stop=())
            reason = f" {spec.reason}"
        self._contexts = [question.to_continue + reason for question in questions]
        super().__init__(model, questions, self._contexts, first, seed)
        self._spec, self._reader = spec, AnswerReader(spec, measure)
        if spec.search != "beam":  # which reads its prompts itself, whole
            self._writer.cache_prefix(self._prompts)

    def answer(self, numbers: Sequence[int]) -> Iterator[AnswerRow]:
        """The rows of the questions of these numbers."""
        questions, texts, cut = self.written(numbers)
        reasons: list[list[str]] = [[] for _ in numbers]
        if self._spec.reason:
            reasons, texts = texts, self._conclude(numbers, texts)
        yield from self._reader.rows(questions, texts, reasons, cut)

    def _conclude(
        self, numbers: Sequence[int], reasons: Sequence[Sequence[str]]
    ) -> list[list[str]]:
        """The second pass: an answer to each reasoning."""
        asked = [(n, text) for n, each in zip(numbers, reasons, strict=True) for text in each]
        again = [f"{self._contexts[n]}{reason}\n{self._spec.extraction}" for n, reason in asked]
        ids = [int(self._questions[number].id) for number, _ in asked]
        greedy = replace(self._spec, search="greedy", samples=1)
        texts, _ = self._writer.write(self._model.encode_contexts(again), ids, greedy)
        flat = iter(texts)
        return [[next(flat)[0] for _ in each] for each in reasons]


class AnswerReader:
    """Reads answers from the texts a model wrote, and compares them with the right ones."""

    def __init__(self, spec: AnswerSpec, measure: str) -> None:
        self._spec, self._measure = spec, measure
        self._overlap = OVERLAPS.get(measure)
        if self._overlap is not None:
            self._overlap(" ", [" "])  # says at once that its library is missing

    def rows(
        self,
        questions: Sequence[Question],
        texts: Sequence[Sequence[str]],
        reasons: Sequence[Sequence[str]],
        cut: Sequence[int],
    ) -> Iterator[AnswerRow]:
        """The items' rows, from the texts written as answers and the reasons written before them.

        Raises:
            TaskTextError: the task's regular expression takes too long for a text.
        """
        with naming_the_item("answer.extract", questions, texts):
            found = iter(extract_answers([text for few in texts for text in few], self._spec))
        answers = [[next(found) for _ in few] for few in texts]
        yield from map(self._row, questions, texts, answers, reasons, cut)

    def _row(
        self,
        question: Question,
        texts: Sequence[str],
        answers: list[str],
        reasons: Sequence[str],
        cut: int,
    ) -> AnswerRow:
        normalise = NORMALISERS[self._spec.normalise]
        given = vote(answers, normalise) if len(answers) > 1 else answers[0]
        metrics: dict[str, Numbers] = {
            "exact_match": exact_match(given, question.answers, normalise),
            "f1": word_f1(given, question.answers),
        }
        if self._overlap is not None:
            metrics[self._measure] = self._overlap(given, question.answers)
        return AnswerRow(
            id=question.id,
            shots=list(question.shots),
            prompt=question.plain,
            gold=question.answers[0],
            reasoning=list(reasons),
            texts=list(texts),
            answers=answers,
            answer=given,
            truncated=cut,
            metrics=metrics,
        )


@contextlib.contextmanager
def naming_the_item(
    key: str, questions: Sequence[Question], texts: Sequence[Sequence[str]]
) -> Iterator[None]:
    """A `SlowPattern` inside becomes an error that names the setting and the item of the text."""
    try:
        yield
    except SlowPattern as error:
        ids = [question.id for question, few in zip(questions, texts, strict=True) for _ in few]
        problem = f"{key}, item {ids[error.number]}: {error.problem}"
        raise TaskTextError(problem, error.fix) from error


class LeastToMost(WritingMethod):
    """Asks for a question's parts, then answers them in order, the question itself last.

    The first prompt is the task's worked decompositions and the item; the parts are named in the
    text written. Each part is asked after the item and all parts before it with their answers; the
    last answer is the item's.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        spec: AnswerSpec,
        decompose: DecomposeSpec,
        measure: str = "exact_match",
        seed: int = 0,
    ) -> None:
        first = replace(spec, max_new_tokens=decompose.max_new_tokens, stop=decompose.stop)
        super().__init__(model, questions, [each.decompose for each in questions], first, seed)
        self._spec, self._decompose = spec, decompose
        self._reader = AnswerReader(spec, measure)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each question's prompt and answers."""
        written = (self._decompose.most + 1) * self._spec.max_new_tokens
        return [tokens + written for tokens in super().tokens]

    def answer(self, numbers: Sequence[int]) -> Iterator[AnswerRow]:
        """The rows of the questions of these numbers."""
        spec = self._decompose
        questions, lists, cut = self.written(numbers)
        with naming_the_item("decompose.part", questions, lists):
            named = find_all(spec.part, [text for (text,) in lists])
        parts = [
            parts_of_question(found, question.last, spec.most)
            for found, question in zip(named, questions, strict=True)
        ]
        solved: list[list[str]] = [[] for _ in questions]
        said = [question.contexts[0] for question in questions]
        for turn in range(max(map(len, parts))):
            asking = [place for place, each in enumerate(parts) if len(each) > turn]
            for place in asking:
                parts[place][turn] = write_part(spec.question, parts[place][turn])
                said[place] += "\n\n" + parts[place][turn]
            prompts = self._model.encode_contexts([said[place] for place in asking])
            ids = [int(questions[place].id) for place in asking]
            answers, lost = self._writer.write(prompts, ids, self._spec)
            for place, (text,), each in zip(asking, answers, lost, strict=True):
                said[place] += f" {text.strip()}"
                solved[place].append(text)
                cut[place] = max(cut[place], each)
        steps = [
            [f"{asked} {text.strip()}" for asked, text in zip(few[:-1], answers[:-1], strict=True)]
            for few, answers in zip(parts, solved, strict=True)
        ]
        reasons = [[*listed, *few] for listed, few in zip(lists, steps, strict=True)]
        yield from self._reader.rows(questions, [each[-1:] for each in solved], reasons, cut)


def parts_of_question(found: Sequence[str | None], last: str, most: int) -> list[str]:
    """The parts that a text names, each once and at most so many, and the question itself last."""
    named = dict.fromkeys((each or "").strip() for each in found)
    parts = [part for part in named if part and part != last]
    return [*parts[:most], last]
