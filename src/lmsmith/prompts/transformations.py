"""GPT-1's input transformations: an example as sequences of tokens (Radford et al. 2018, figure 1).

    classification    ⟨s⟩ text ⟨e⟩
    entailment        ⟨s⟩ premise $ hypothesis ⟨e⟩
    similarity        ⟨s⟩ first $ second ⟨e⟩  and  ⟨s⟩ second $ first ⟨e⟩
    multiple choice   ⟨s⟩ context $ answer ⟨e⟩, a sequence an answer

⟨s⟩, $ and ⟨e⟩ are three ids after the vocabulary: no text makes them, and the model's head has
their embeddings (`lmsmith.models.classifier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.corpus.labelled.task import Form
from lmsmith.models.classifier import CONTROLS

Tokens = Sequence[int]


@dataclass(frozen=True)
class Controls:
    """Ids of the three learnt tokens."""

    start: int
    delimiter: int
    extract: int

    @classmethod
    def after(cls, vocabulary_size: int) -> Controls:
        """The three ids that follow a vocabulary."""
        return cls(vocabulary_size, vocabulary_size + 1, vocabulary_size + 2)


def classification(text: Tokens, controls: Controls) -> list[int]:
    """⟨s⟩ text ⟨e⟩."""
    return [controls.start, *text, controls.extract]


def entailment(premise: Tokens, hypothesis: Tokens, controls: Controls) -> list[int]:
    """⟨s⟩ premise $ hypothesis ⟨e⟩."""
    return [controls.start, *premise, controls.delimiter, *hypothesis, controls.extract]


def similarity(first: Tokens, second: Tokens, controls: Controls) -> list[list[int]]:
    """Both orders: neither text comes first by its nature."""
    return [entailment(first, second, controls), entailment(second, first, controls)]


def multiple_choice(
    context: Tokens, answers: Sequence[Tokens], controls: Controls
) -> list[list[int]]:
    """⟨s⟩ context $ answer ⟨e⟩ for each answer."""
    return [entailment(context, answer, controls) for answer in answers]


def truncate_pair(first: Tokens, second: Tokens, room: int) -> tuple[Tokens, Tokens]:
    """Both texts cut to ``room`` tokens in all: the longer one loses its end until they are equal.

    As if a token a time were taken from the end of the longer, of the second where they are equal.
    """
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    longer, shorter = max(len(first), len(second)), min(len(first), len(second))
    from_longer = min(excess, longer - shorter)
    each, odd = divmod(excess - from_longer, 2)
    if len(first) > len(second):
        cut_first, cut_second = from_longer + each, each + odd
    else:
        cut_first, cut_second = each, from_longer + each + odd
    return first[: max(0, len(first) - cut_first)], second[: max(0, len(second) - cut_second)]


def transform(
    form: Form,
    texts: Sequence[Tokens],
    answers: Sequence[Tokens],
    controls: Controls,
    length: int,
) -> tuple[list[list[int]], bool]:
    """An example's sequences, none longer than ``length`` tokens, and whether a text was cut.

    Args:
        texts: one, or two for entailment and similarity; the context with multiple choice.
        answers: of multiple choice. All get the same context, cut for the longest of them.
    """
    if form == "classification":
        (text,) = texts
        kept = text[: length - 2]
        return [classification(kept, controls)], len(kept) < len(text)
    room = length - CONTROLS
    if form == "multiple_choice":
        (context,) = texts
        longest = max(answers, key=len)
        kept, part = truncate_pair(context, longest, room)
        parts = [answer[: len(part)] for answer in answers]
        return multiple_choice(kept, parts, controls), (kept, part) != (context, longest)
    first, second = texts
    cut = truncate_pair(first, second, room)
    whole = len(cut[0]) + len(cut[1]) == len(first) + len(second)
    if form == "similarity":
        return similarity(*cut, controls), not whole
    return [entailment(*cut, controls)], not whole
