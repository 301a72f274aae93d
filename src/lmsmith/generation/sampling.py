"""From logits to a token: temperature, top-k, nucleus, min-p, and one draw by inverting the CDF.

`native/draw.hpp` does the same, several times as fast. One uniform number a row is an argument, so
that every function is pure and a row's token depends on that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Mask

PREFIX = 512
"""Number of likeliest tokens that are searched for a nucleus before all are sorted."""


def row_uniforms(seed: int, rows: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (rows, count): one stream for each row's number.

    Philox (Salmon et al. 2011) keyed by (seed, row): a row's numbers depend on no other row, and
    the first ones not on ``count``.
    """
    numbers = np.empty((len(rows), count))
    for index, row in enumerate(rows):
        key = np.array([seed, row], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=numbers[index])
    return torch.from_numpy(numbers)


def choose_tokens(
    logits_bv: Tensor, settings: SamplingSettings, uniform_b: Tensor, mask: Mask | None = None
) -> Tensor:
    """The next token of each row (batch,), int64.

    Args:
        logits_bv: float32 (batch, vocabulary).
        settings: temperature, top_k, top_p and min_p are used, in that order.
        uniform_b: in [0, 1), float64; not used at temperature 0.
        mask: tokens that may be drawn; all if None.

    Raises:
        UserError: a row's largest logit is not a finite number.
    """
    if settings.temperature == 0:
        logits_bv = logits_bv if mask is None else mask.apply(logits_bv)
        check_finite(logits_bv)
        return greedy(logits_bv)
    return sample(filtered(logits_bv, settings, mask), uniform_b)


def filtered(logits_bv: Tensor, settings: SamplingSettings, mask: Mask | None = None) -> Tensor:
    """Logits of the distribution that a token is drawn from, −∞ where none may be.

    The mask comes first; top-k, nucleus and min-p choose among the rest. At temperature 0 the
    likeliest token alone is left.

    Raises:
        UserError: a row's largest logit is not a finite number.
    """
    logits_bv = logits_bv if mask is None else mask.apply(logits_bv)
    check_finite(logits_bv)
    if settings.temperature == 0:
        only_b1 = logits_bv.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits_bv, -math.inf).scatter_(-1, only_b1, 0.0)
    logits_bv = scale(logits_bv, settings.temperature)
    logits_bv = keep_top_k(logits_bv, settings.top_k)
    logits_bv = keep_nucleus(logits_bv, settings.top_p)
    return keep_min_p(logits_bv, settings.min_p)


def check_finite(logits_bv: Tensor) -> None:
    """Raise UserError where a row's largest logit is not a finite number."""
    if not bool(torch.isfinite(logits_bv.amax(dim=-1)).all()):
        raise not_finite()


def not_finite() -> UserError:
    """What is said of a model whose logits are not finite."""
    return UserError(
        "the model's logits are not finite numbers, so it cannot write",
        "its weights are damaged, or its training diverged: make its stage again "
        "(`lmsmith run RECIPE --redo STAGE`), if need be with a lower learning rate",
    )


def greedy(logits_bv: Tensor) -> Tensor:
    """The likeliest token of each row."""
    return logits_bv.argmax(dim=-1)


def scale(logits_bv: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature; the likeliest is at 0, so that none overflows."""
    if temperature == 1:
        return logits_bv
    below_bv = logits_bv - logits_bv.amax(dim=-1, keepdim=True)
    return below_bv / max(temperature, torch.finfo(logits_bv.dtype).tiny)


def keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    """Exactly the k largest logits of each row kept, the others −∞; all if k is 0.

    Fan et al. 2018, section 5.1.
    """
    if k == 0 or k >= logits_bv.shape[-1]:
        return logits_bv
    values_bk, tokens_bk = logits_bv.topk(k, dim=-1)
    return torch.full_like(logits_bv, -math.inf).scatter_(-1, tokens_bk, values_bk)


def keep_nucleus(logits_bv: Tensor, p: float) -> Tensor:
    """The smallest set of likeliest tokens with total probability at least p kept, others −∞.

    Holtzman et al. 2020, section 3.1.
    """
    if p >= 1:
        return logits_bv
    largest_b1 = logits_bv.amax(dim=-1, keepdim=True)
    total_b1 = (logits_bv - largest_b1).exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    count = logits_bv.shape[-1]
    values_bk, tokens_bk = logits_bv.topk(min(PREFIX, count), dim=-1)
    before_bk = _probability_before(values_bk, largest_b1, total_b1)
    if values_bk.shape[-1] < count and bool((before_bk[:, -1] < p).any()):
        values_bk, tokens_bk = logits_bv.sort(dim=-1, descending=True, stable=True)
        before_bk = _probability_before(values_bk, largest_b1, total_b1)
    values_bk = values_bk.masked_fill(before_bk >= p, -math.inf)
    return torch.full_like(logits_bv, -math.inf).scatter_(-1, tokens_bk, values_bk)


def _probability_before(values_bk: Tensor, largest_b1: Tensor, total_b1: Tensor) -> Tensor:
    """Probability of all tokens likelier than each token; float64."""
    probabilities_bk = (values_bk - largest_b1).exp().double() / total_b1
    return probabilities_bk.cumsum(dim=-1) - probabilities_bk


def keep_min_p(logits_bv: Tensor, share: float) -> Tensor:
    """Tokens at least ``share`` as likely as the likeliest kept, others −∞ (Nguyen et al. 2024)."""
    if share == 0:
        return logits_bv
    least_b1 = logits_bv.amax(dim=-1, keepdim=True) + math.log(share)
    return logits_bv.masked_fill(logits_bv < least_b1, -math.inf)


def sample(logits_bv: Tensor, uniform_b: Tensor) -> Tensor:
    """Draw from softmax(logits) by inverting its CDF at ``uniform_b``.

    The first token at which the running sum of probabilities exceeds uniform × total. The sum is
    in float64, so that a token of probability 0 is never drawn.
    """
    running_bv = logits_bv.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total_b = running_bv[:, -1]
    below_total_b = torch.nextafter(total_b, torch.zeros_like(total_b))
    target_b = torch.minimum(uniform_b * total_b, below_total_b)
    return torch.searchsorted(running_bv, target_b[:, None], right=True)[:, 0]


class History:
    """Counts of a reply's tokens so far, and the tokens of its prompt."""

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
    """One row's logits (vocabulary,) after bias and penalties; the argument is not changed.

    The repetition penalty divides the logits of seen tokens where positive and multiplies them
    where negative (Keskar et al. 2019, section 4.1, with the sign's cure that `transformers` made
    usual); the others give logit − presence · [count > 0] − frequency · count.
    """
    bias, penalty = settings.logit_bias, settings.repetition_penalty
    presence, frequency = settings.presence_penalty, settings.frequency_penalty
    if not bias and not (settings.has_penalties and history):
        return logits_v
    logits_v, device = logits_v.clone(), logits_v.device
    if bias:
        logits_v[torch.tensor(list(bias))] += torch.tensor(list(bias.values()), device=device)
    if history is None:
        return logits_v
    if penalty != 1.0 and (seen := history.seen):
        index = torch.tensor(seen)
        found = logits_v[index]
        logits_v[index] = torch.where(found > 0, found / penalty, found * penalty)
    if history.counts and (presence or frequency):
        index = torch.tensor(list(history.counts))
        counts = list(history.counts.values())
        number = torch.tensor(counts, dtype=logits_v.dtype, device=device)
        logits_v[index] -= presence + frequency * number
    return logits_v
