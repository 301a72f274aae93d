"""A model's judgement read by label words: its answer is one of a few, with their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from lmsmith.evaluation.calibration import choice_probabilities
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.model import EvaluatedModel, load_evaluated_model
from lmsmith.training.machine import ResolvedMachine

PROMPTS_AT_ONCE = 16


class LabelWords:
    """Reads which of a few labels a model answers.

    P(label) = softmax over the labels of log P(label | prompt): what the model would say if it
    could say nothing else. It writes nothing, so its answer can always be read.
    """

    def __init__(self, subject: EvaluatedModel, labels: Sequence[str]) -> None:
        self._subject, self._labels = subject, tuple(labels)
        self._reader = LikelihoodReader(subject.model)

    def probabilities(self, prompts: Sequence[str]) -> list[Mapping[str, float]]:
        """Of each prompt, every label's probability."""
        found: list[Mapping[str, float]] = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts[start : start + PROMPTS_AT_ONCE]
            pairs = [(prompt, f" {label}") for prompt in part for label in self._labels]
            read = iter(self._reader.read(self._subject.encode_pairs(pairs)))
            for _ in part:
                totals = [next(read).total for _ in self._labels]
                chances = choice_probabilities(totals).tolist()
                found.append(dict(zip(self._labels, chances, strict=True)))
        return found


@functools.lru_cache(maxsize=1)
def load_judge(word: str, machine: ResolvedMachine, chat: bool) -> EvaluatedModel:
    """A model that judges others; the last one is kept."""
    return load_evaluated_model(word, machine, chat=chat)
