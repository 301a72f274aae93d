"""Texts that a model writes after prompts: greedy, by beams, or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.evaluation.methods.likelihood import common_prefix
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.sequences import until_stop

STREAMS_AN_ITEM = 1 << 20
"""Of chance: sample i of item n draws from stream n times this, plus i."""


def writing_requests(
    subject: EvaluatedModel,
    spec: AnswerSpec,
    seed: int,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    room: int,
    stops: Sequence[str],
    samples: int,
    *,
    greedy: bool = False,
) -> tuple[list[Request], list[int]]:
    """What an engine is asked to write as a task says, and the tokens each prompt lost to fit."""
    context = subject.context
    room = min(room, context // 2)
    cut = [max(0, len(prompt) + room - context) for prompt in prompts]
    sampled = spec.search == "sample" and not greedy
    settings = SamplingSettings(
        max_new_tokens=room,
        temperature=spec.temperature if sampled else 0.0,
        top_p=spec.top_p if sampled else 1.0,
        stop_tokens=subject.tokenizer.stop_tokens,
        seed=seed,
        stop=tuple(stops),
        samples=samples,
    )
    requests = [
        Request(
            list(prompt[lost:]),
            settings,
            f"item {item}",
            item * STREAMS_AN_ITEM,
            is_message=subject.chat,
        )
        for prompt, lost, item in zip(prompts, cut, ids, strict=True)
    ]
    return requests, cut


class Writer:
    """Writes as a task's settings say; what an item gets does not depend on the others."""

    def __init__(self, subject: EvaluatedModel, spec: AnswerSpec, seed: int) -> None:
        self._subject, self._spec, self._seed = subject, spec, seed
        self._engine = Engine(subject.model, tokenizer=subject.tokenizer)

    def cache_prefix(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read once what all prompts of a task begin with, as with fixed shots.

        Beams read their prompts themselves, whole.
        """
        prefix = common_prefix(prompts)
        if self._spec.search != "beam" and len(prefix) < self._subject.context:
            self._engine.cache_prefix(prefix)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        ids: Sequence[int],
        room: int,
        stops: Sequence[str],
        samples: int,
        *,
        greedy: bool = False,
    ) -> tuple[list[list[str]], list[int]]:
        """Texts of each prompt, and the tokens it lost to fit with its answer."""
        requests, cut = writing_requests(
            self._subject, self._spec, self._seed, prompts, ids, room, stops, samples, greedy=greedy
        )
        if self._spec.search == "beam" and not greedy:
            room = requests[0].settings.max_new_tokens if requests else room
            return [[self._beam(each.prompt, room, stops)] for each in requests], cut
        return [[reply.text for reply in each] for each in answer(self._engine, requests)], cut

    def _beam(self, prompt: Sequence[int], room: int, stops: Sequence[str]) -> str:
        tokenizer = self._subject.tokenizer
        settings = BeamSettings(max_new_tokens=room, stop_tokens=tokenizer.stop_tokens)
        best = beam_search(self._subject.model, prompt, settings, tokenizer=tokenizer)[0]
        before = () if self._subject.chat else prompt
        text = tokenizer.decode(best.tokens, after=before)
        return "".join(until_stop(iter([text]), list(stops)))
