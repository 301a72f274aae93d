"""How likely the model finds tokens: those that it writes, those of a prompt, and alternatives.

What is given is log p = logit − log Σ exp(logits) of the model's raw logits, in nats. Bias,
penalties, temperature, truncation and what UTF-8 forbids decide which token is drawn, and change
nothing of it. Ids without a token have their part in the sum, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.vocabulary import Vocabulary

LOGITS_AT_ONCE = 256
"""Places of a prompt whose logits are held together."""


@dataclass(frozen=True)
class TokenLogProb:
    """A token's log-probability, and those of what could stand in its place.

    Attributes:
        token: its id.
        log_prob: log p(token | what is before it).
        top: (token, log-probability) of the likeliest there, the likeliest first.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


def token_log_probs(
    logits_nv: Tensor, tokens: Sequence[int], top: Sequence[int], vocabulary: Vocabulary
) -> list[TokenLogProb]:
    """Log-probabilities of tokens, and of the likeliest at each place.

    Args:
        logits_nv: the model's own, float32.
        tokens: the n tokens.
        top: how many of the likeliest, at each place.
        vocabulary: ids without a token are not among the likeliest.
    """
    log_probs_nv = logits_nv.log_softmax(dim=-1)
    chosen_n = log_probs_nv.gather(1, torch.tensor(list(tokens))[:, None])[:, 0].tolist()
    most = max(top, default=0)
    likeliest: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if most:
        values_nk, tokens_nk = vocabulary.of_tokens(log_probs_nv).topk(most, dim=-1)
        likeliest = [
            list(zip(ids, values, strict=True))
            for ids, values in zip(tokens_nk.tolist(), values_nk.tolist(), strict=True)
        ]
    return [
        TokenLogProb(token, log_prob, tuple(found[:number]))
        for token, log_prob, found, number in zip(tokens, chosen_n, likeliest, top, strict=True)
    ]


def prompt_log_probs(
    model: InferenceDecoder,
    prompt: Sequence[int],
    hidden_td: Tensor,
    top: int,
    vocabulary: Vocabulary,
) -> tuple[TokenLogProb, ...]:
    """Log-probabilities of a prompt's tokens; the first has none.

    Args:
        model: whose logits are taken, of a part of the prompt at a time.
        prompt: its t tokens.
        hidden_td: the states that the model has after each.
        top: how many of the likeliest, at each place.
        vocabulary: of the model.
    """
    targets = list(prompt)[1:]
    found: list[TokenLogProb] = []
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        part = targets[start : start + LOGITS_AT_ONCE]
        logits_nv = model.logits(hidden_td[start : start + len(part)])
        found += token_log_probs(logits_nv, part, [top] * len(part), vocabulary)
    return tuple(found)
