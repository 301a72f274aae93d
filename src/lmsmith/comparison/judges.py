"""Judges of which of two replies is better: a reward model, or a language model asked both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lmsmith.catalogue.remote import is_address
from lmsmith.catalogue.resolve import resolve, weights_sum
from lmsmith.comparison.score import score_responses
from lmsmith.core.files import fingerprint
from lmsmith.evaluation.methods.rated import LabelWords
from lmsmith.evaluation.model import EvaluatedModel, load_evaluated_model
from lmsmith.models.folder import load_scalar_model, load_tokenizer, read_model_config
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import Message
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

Compared = tuple[list[Message], str, str]
"""Messages and two replies, a's and b's."""


class Judge(Protocol):
    """Compares replies."""

    @property
    def name(self) -> str:
        """To call it by."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what its judgements depend on, besides the replies."""

    @property
    def cut(self) -> int:
        """How many questions were longer than its context, and lost their beginning."""

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        """``score_a`` and ``score_b`` of each row; equal ones are a tie."""


class RewardJudge:
    """A reward model: each reply's score, whatever the other is."""

    def __init__(
        self,
        name: str,
        model: ScalarModel,
        tokenizer: Tokenizer,
        machine: ResolvedMachine,
        weights: str = "",
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint(["reward", weights, machine.precision])
        self._model, self._tokenizer, self._machine = model, tokenizer, machine
        self.cut = 0  # a reward model is shown one reply, whose end is cut

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        """Both rewards of each row; equal replies have equal ones."""
        answered = [(messages, [a, b]) for messages, a, b in rows]
        scores = score_responses(self._model, self._tokenizer, answered, self._machine)
        return [{"score_a": a, "score_b": b} for a, b in scores]


ASKED = """Here is a conversation, and two replies to its last message.

{conversation}

Reply 1:
{first}

Reply 2:
{second}

Which reply is better: more helpful, truer, and free of harm? Answer 1 or 2.
Better reply:"""


class ModelJudge:
    """A language model that is shown both replies in both orders.

    P(1) is the probability of the label word "1" against "2". The score of a is the mean of its
    probabilities shown first and shown second, so that a liking for a place cancels out (Zheng et
    al. 2023, section 3.4); that of b is 1 minus it. A model behind another server writes the label.
    """

    def __init__(self, subject: EvaluatedModel) -> None:
        self.name = subject.name
        self.fingerprint = fingerprint(["model", subject.fingerprint, ASKED])
        self._words = LabelWords(subject, ("1", "2"))

    @property
    def cut(self) -> int:
        """Questions that lost their beginning: the conversation, and the reply shown first."""
        return self._words.cut

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        """Also ``a_shown_first`` and ``a_shown_second``: a's probability in either place."""
        asked = []
        for messages, a, b in rows:
            conversation = "\n".join(f"{each['role']}: {each['content']}" for each in messages)
            for one, two in ((a, b), (b, a)):
                asked.append(ASKED.format(conversation=conversation, first=one, second=two))
        found = self._words.probabilities(asked)
        judged = []
        for (_, a, b), forward, backward in zip(rows, found[::2], found[1::2], strict=True):
            first, second = forward["1"], backward["2"]
            score = 0.5 if a == b else (first + second) / 2
            judged.append(
                {
                    "score_a": score,
                    "score_b": 1 - score,
                    "a_shown_first": first,
                    "a_shown_second": second,
                }
            )
        return judged


def cut_warning(judge: Judge) -> str:
    """What a judge did not see; empty if it saw all."""
    if not judge.cut:
        return ""
    return (
        f"{judge.name} did not see all that it judged: {judge.cut:,} questions, two a pair, are "
        "longer than its context and lost their beginning. Take a judge with a longer context, or "
        "let the models write less"
    )


def load_judge(word: str, machine: ResolvedMachine) -> Judge:
    """A reward model's folder gives a `RewardJudge`, any model that writes a `ModelJudge`."""
    if is_address(word):
        return ModelJudge(load_evaluated_model(word, machine, chat=True))
    source = resolve(word)
    if source.format == "lmsmith" and read_model_config(source.path)[0] == "scalar":
        model, tokenizer = load_scalar_model(source.path), load_tokenizer(source.path)
        return RewardJudge(source.name, model, tokenizer, machine, weights_sum(source))
    return ModelJudge(load_evaluated_model(word, machine))
