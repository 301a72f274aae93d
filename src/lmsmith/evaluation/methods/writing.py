"""Texts that a model writes after prompts: greedy, by beams, or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.evaluation.methods.likelihood import common_prefix
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.evaluation.tasks.spec import AnswerSpec
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
            list(prompt[lost:]),
            settings,
            f"item {item}",
            item * STREAMS_AN_ITEM,
            is_message=model.chat,
        )
        for prompt, lost, item in zip(prompts, cut, ids, strict=True)
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
        best = beam_search(self._model.model, request.prompt, beams, tokenizer=tokenizer)[0]
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
