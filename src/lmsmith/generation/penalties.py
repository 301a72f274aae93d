"""What changes logits by the tokens before (three penalties), and the bias of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmsmith.generation.settings import SamplingSettings


class History:
    """The tokens of one reply so far, counted, and those of its prompt."""

    def __init__(self, prompt: list[int]) -> None:
        self.counts: dict[int, int] = {}
        self._prompt = set(prompt)

    def add(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1

    @property
    def seen(self) -> list[int]:
        """Every token of prompt and reply, once."""
        return sorted(self._prompt | self.counts.keys())


def adjust(logits_v: Tensor, settings: SamplingSettings, history: History | None) -> Tensor:
    """One row's logits (vocabulary,) after bias and penalties; the argument is left as it is."""
    if not settings.logit_bias and not (settings.has_penalties and history):
        return logits_v
    logits_v = add_bias(logits_v.clone(), settings.logit_bias)
    if history is None or not settings.has_penalties:
        return logits_v
    logits_v = penalise_repetition(logits_v, history.seen, settings.repetition_penalty)
    return penalise_counts(
        logits_v, history.counts, settings.presence_penalty, settings.frequency_penalty
    )


def add_bias(logits_v: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add to the logits of some tokens, in place."""
    if bias:
        logits_v[torch.tensor(list(bias))] += torch.tensor(list(bias.values()))
    return logits_v


def penalise_repetition(logits_v: Tensor, seen: list[int], penalty: float) -> Tensor:
    """Logits of seen tokens divided by the penalty where positive, multiplied where negative.

    Keskar et al. 2019, section 4.1, with the sign's cure that `transformers` made usual. In place.
    """
    if penalty == 1.0 or not seen:
        return logits_v
    index = torch.tensor(seen)
    found = logits_v[index]
    logits_v[index] = torch.where(found > 0, found / penalty, found * penalty)
    return logits_v


def penalise_counts(
    logits_v: Tensor, counts: Mapping[int, int], presence: float, frequency: float
) -> Tensor:
    """logit − presence · [count > 0] − frequency · count, in place."""
    if not counts or (presence == 0.0 and frequency == 0.0):
        return logits_v
    index = torch.tensor(list(counts))
    number = torch.tensor(list(counts.values()), dtype=logits_v.dtype)
    logits_v[index] -= presence + frequency * number
    return logits_v
