"""From logits to a token: temperature, top-k, nucleus, and one draw by inverting the CDF.

Chance enters as an argument, one uniform number a row, so that every function here is pure and a
row's token depends on that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """How a reply is drawn.

    Attributes:
        max_new_tokens: longest reply, in tokens; the context's end may come first.
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens may be drawn; 0 means all.
        top_p: only the smallest set of likeliest tokens with at least this probability may be
            drawn (nucleus sampling); 1 means all.
        stop_tokens: a reply ends with the first of these, which is part of it.
        seed: of all chance; each row of a batch has its own stream made from it.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0

    def check(self) -> list[tuple[str, object, str, str]]:
        """Settings out of range, as (key, value, expected, mend)."""
        problems: list[tuple[str, object, str, str]] = []
        if self.max_new_tokens < 1:
            problems.append(
                ("max_new_tokens", self.max_new_tokens, "1 or more", "raise max_new_tokens")
            )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            problems.append(
                ("temperature", self.temperature, "0 or more", "0 takes the likeliest token")
            )
        if self.top_k < 0:
            problems.append(("top_k", self.top_k, "0 or more", "0 allows every token"))
        if not 0 < self.top_p <= 1:
            problems.append(("top_p", self.top_p, "0 < top_p <= 1", "1 allows every token"))
        if any(token < 0 for token in self.stop_tokens):
            problems.append(("stop_tokens", self.stop_tokens, "token ids", "remove negative ones"))
        if not 0 <= self.seed < 2**64:
            problems.append(("seed", self.seed, "0 <= seed < 2^64", "choose another seed"))
        return problems


def row_uniforms(seed: int, rows: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (rows, count): one stream for each row's number.

    Philox (Salmon et al. 2011) keyed by (seed, row): a row's numbers are the same whichever other
    rows are asked for, and the first ones are the same whatever ``count`` is.
    """
    numbers = np.empty((len(rows), count))
    for index, row in enumerate(rows):
        key = np.array([seed, row], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=numbers[index])
    return torch.from_numpy(numbers)


def choose_tokens(logits_bv: Tensor, settings: SamplingSettings, uniform_b: Tensor) -> Tensor:
    """The next token of each row (batch,), int64.

    Args:
        logits_bv: float32 (batch, vocabulary).
        settings: temperature, top_k and top_p are used, in that order.
        uniform_b: in [0, 1), float64; not looked at when the temperature is 0.
    """
    if settings.temperature == 0:
        return greedy(logits_bv)
    logits_bv = scale(logits_bv, settings.temperature)
    logits_bv = keep_top_k(logits_bv, settings.top_k)
    logits_bv = keep_nucleus(logits_bv, settings.top_p)
    return sample(logits_bv, uniform_b)


def greedy(logits_bv: Tensor) -> Tensor:
    """The likeliest token of each row."""
    return logits_bv.argmax(dim=-1)


def scale(logits_bv: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature: softmax gets sharper below 1, flatter above."""
    return logits_bv if temperature == 1 else logits_bv / temperature


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

    Holtzman et al. 2020, section 3.1. The likeliest token is always kept.
    """
    if p >= 1:
        return logits_bv
    values_bv, tokens_bv = logits_bv.sort(dim=-1, descending=True, stable=True)
    probabilities_bv = values_bv.softmax(dim=-1, dtype=torch.float64)
    before_bv = probabilities_bv.cumsum(dim=-1) - probabilities_bv
    values_bv = values_bv.masked_fill(before_bv >= p, -math.inf)
    return torch.empty_like(logits_bv).scatter_(-1, tokens_bv, values_bv)


def sample(logits_bv: Tensor, uniform_b: Tensor) -> Tensor:
    """Draw from softmax(logits) by inverting its CDF at ``uniform_b``.

    The first token at which the running sum of probabilities exceeds uniform × total. The sum is
    kept in float64, so that rounding is far below what any number of draws could show, and a
    token of probability 0 is never drawn.
    """
    running_bv = logits_bv.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total_b = running_bv[:, -1]
    below_total_b = torch.nextafter(total_b, torch.zeros_like(total_b))
    target_b = torch.minimum(uniform_b * total_b, below_total_b)
    return torch.searchsorted(running_bv, target_b[:, None], right=True)[:, 0]
