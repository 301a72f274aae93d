"""Multiple choice by the likelihood of each choice (Brown et al. 2020, section 2.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmsmith.evaluation.methods.likelihood import Likelihood, LikelihoodReader, shared_prefix
from lmsmith.evaluation.model import EvaluatedModel, Pair
from lmsmith.evaluation.rows import Choice, ChoiceRow
from lmsmith.evaluation.tasks.prompts import Question


@dataclass(frozen=True)
class _Asked:
    """A question as pairs: one a choice, and those of the choices alone."""

    question: Question
    pairs: tuple[Pair, ...]
    alone: tuple[Pair, ...]


class MultipleChoice:
    """Answers questions with choices.

    The measures, by which the choice with the highest score is taken:

    - ``accuracy``: Σ log P(token | before it), the log-probability of the whole choice;
    - ``accuracy_per_token``, ``_per_character``, ``_per_byte``: the same divided by the choice's
      length, its leading space not counted in characters and bytes;
    - ``accuracy_unconditional``: log P(choice | context) − log P(choice | answer context).

    Of choices that are the same text one is as right as the other.

    With several contexts (partial evaluation, Trinh & Le 2018) the choices are the same
    continuation, and only ``accuracy`` is measured.

    Args:
        answer_context: stands before a choice alone; ``accuracy_unconditional`` is measured by it.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        answer_context: str | None = None,
    ) -> None:
        pairs = model.encode_pairs([pair for each in questions for pair in each.pairs])
        alone = []
        if answer_context is not None:
            choices = [(answer_context, text) for each in questions for _, text in each.pairs]
            alone = model.encode_pairs(choices)
        self._asked, at = [], 0
        for question in questions:
            after = at + len(question.choices)
            self._asked.append(_Asked(question, tuple(pairs[at:after]), tuple(alone[at:after])))
            at = after
        self._reader = LikelihoodReader(model.model)
        self._held = shared_prefix(pairs)
        self._reader.cache_prefix(self._held)

    @property
    def tokens(self) -> list[int]:
        """Approximate tokens read for each question: its context once, without what all share,
        and its choices."""
        return [self._cost(asked) for asked in self._asked]

    def _cost(self, asked: _Asked) -> int:
        pairs = [*asked.pairs, *asked.alone]
        contexts = {pair.tokens[: -pair.scored] for pair in pairs}
        held = sum(tokens[: len(self._held)] == self._held for tokens in contexts)
        read = sum(map(len, contexts)) - held * len(self._held)
        return max(1, read + sum(pair.scored - 1 for pair in pairs))

    def answer(self, numbers: Sequence[int]) -> Iterator[ChoiceRow]:
        """The rows of the questions of these numbers."""
        asked = [self._asked[number] for number in numbers]
        pairs = [pair for each in asked for pair in (*each.pairs, *each.alone)]
        found = iter(self._reader.read(pairs))
        for each in asked:
            given = [next(found) for _ in each.pairs]
            alone = [next(found) for _ in each.alone]
            yield self._row(each, given, alone)

    def _row(
        self, asked: _Asked, given: Sequence[Likelihood], alone: Sequence[Likelihood]
    ) -> ChoiceRow:
        question = asked.question
        partial = len(question.contexts) > 1
        scores = choice_scores(question.choices, given, alone)
        if partial:
            scores = {"accuracy": scores["accuracy"]}
        chosen = {name: each.index(max(each)) for name, each in scores.items()}
        compared = question.contexts if partial else question.choices
        choices = [
            Choice(text, round(likelihood.total, 6), len(likelihood.log_probs))
            for text, likelihood in zip(compared, given, strict=True)
        ]
        for choice, likelihood in zip(choices, alone, strict=False):
            choice.alone = round(likelihood.total, 6)
        return ChoiceRow(
            id=question.id,
            shots=list(question.shots),
            prompt=question.plain,
            gold=question.gold,
            chosen=chosen,
            choices=choices,
            scores={n: [round(s, 6) for s in each] for n, each in scores.items()},
            truncated=max(pair.truncated for pair in asked.pairs),
            metrics={
                name: float(compared[each] == compared[question.gold])
                for name, each in chosen.items()
            },
        )


def choice_scores(
    choices: Sequence[str], given: Sequence[Likelihood], alone: Sequence[Likelihood] = ()
) -> dict[str, list[float]]:
    """Each measure's score of each choice.

    Args:
        choices: their texts.
        given: their likelihoods after the context.
        alone: after the answer context; none of the unconditional scores if empty.
    """
    totals = [each.total for each in given]
    lengths = {
        "accuracy": [1.0] * len(choices),
        "accuracy_per_token": [float(len(each.log_probs)) for each in given],
        "accuracy_per_character": [float(len(choice)) for choice in choices],
        "accuracy_per_byte": [float(len(choice.encode())) for choice in choices],
    }
    scores = {
        name: [total / length for total, length in zip(totals, each, strict=True)]
        for name, each in lengths.items()
    }
    if alone:
        scores["accuracy_unconditional"] = [
            total - other.total for total, other in zip(totals, alone, strict=True)
        ]
    return scores
