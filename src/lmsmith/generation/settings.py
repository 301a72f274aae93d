"""Sampling settings of a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmsmith.core.config import Problem
from lmsmith.generation.vocabulary import Vocabulary

MOST_STREAMS = 2**64


@dataclass(frozen=True)
class SamplingSettings:
    """How a reply is drawn.

    Logits change in this order: logit bias, penalties, temperature, top-k, nucleus, min-p.

    Attributes:
        max_new_tokens: maximum length of a reply, in tokens; the context's end may come first.
        temperature: divides the logits; 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens may be drawn; 0 means all.
        top_p: only the smallest set of likeliest tokens with at least this probability may be
            drawn (nucleus sampling); 1 means all.
        stop_tokens: a reply ends with the first of these, which is part of it.
        seed: of the random numbers; each sample has its own stream.
        min_p: only tokens at least this share as likely as the likeliest may be drawn; 0 means
            all.
        repetition_penalty: a logit of a token that the prompt or the reply holds is divided by it
            where positive and multiplied where negative (Keskar et al. 2019, section 4.1); 1
            changes nothing.
        presence_penalty: subtracted from the logit of every token that the reply holds.
        frequency_penalty: subtracted from a token's logit for each time the reply holds it.
        logit_bias: added to the logits of these tokens; −∞ forbids one.
        stop: texts at which a reply ends; they may lie across tokens, and are no part of the text.
        samples: replies to the prompt, which is read once for all of them.
        log_probs: whether each token's log-probability is returned.
        top_log_probs: how many of the likeliest tokens are returned with theirs, at every place.
        prompt_log_probs: whether those of the prompt's tokens are returned too.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    samples: int = 1
    log_probs: bool = False
    top_log_probs: int = 0
    prompt_log_probs: bool = False

    @property
    def has_penalties(self) -> bool:
        """Whether a token's logit depends on the tokens before."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    @property
    def wants_log_probs(self) -> bool:
        return self.log_probs or self.top_log_probs > 0

    @property
    def forbids(self) -> bool:
        """Whether a bias forbids tokens."""
        return -math.inf in self.logit_bias.values()

    def check(self) -> list[Problem]:
        """Settings out of range."""
        finite, seeds = math.isfinite, f"0 <= seed < {MOST_STREAMS}"
        warmth, penalty, ids = self.temperature, self.repetition_penalty, self.stop_tokens
        biases_are_numbers = all(bias < math.inf for bias in self.logit_bias.values())
        number = "a finite number"
        rules: list[tuple[str, bool, str, str]] = [
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more", "raise max_new_tokens"),
            ("temperature", 0 <= warmth < math.inf, "0 or more", "0 takes the likeliest token"),
            ("top_k", self.top_k >= 0, "0 or more", "0 allows every token"),
            ("top_p", 0 < self.top_p <= 1, "0 < top_p <= 1", "1 allows every token"),
            ("stop_tokens", min(ids, default=0) >= 0, "token ids", "remove negative ones"),
            ("seed", 0 <= self.seed < MOST_STREAMS, seeds, "choose another seed"),
            ("min_p", 0 <= self.min_p <= 1, "0 <= min_p <= 1", "0 allows every token"),
            ("repetition_penalty", 0 < penalty < math.inf, "more than 0", "1 changes nothing"),
            ("presence_penalty", finite(self.presence_penalty), number, "0 changes nothing"),
            ("frequency_penalty", finite(self.frequency_penalty), number, "0 changes nothing"),
            ("logit_bias", biases_are_numbers, "finite numbers, or -inf", "-inf forbids a token"),
            ("stop", "" not in self.stop, "texts", "an empty one would end every reply at once"),
            ("samples", self.samples >= 1, "1 or more", "raise samples"),
            ("top_log_probs", self.top_log_probs >= 0, "0 or more", "0 gives none"),
        ]
        return [
            Problem(key, getattr(self, key), want, fix) for key, ok, want, fix in rules if not ok
        ]

    def check_vocabulary(self, vocabulary: Vocabulary) -> list[Problem]:
        """Settings that name tokens this model does not have, or forbid all of them."""
        within, count = vocabulary.described, vocabulary.tokens
        problems = []
        if unknown := vocabulary.unknown(self.stop_tokens):
            problems.append(Problem("stop_tokens", unknown, within, "the model cannot write these"))
        if biased := vocabulary.unknown(self.logit_bias):
            problems.append(Problem("logit_bias", biased, within, "the model has no such token"))
        if sum(bias == -math.inf for bias in self.logit_bias.values()) >= count:
            expected = "a token that may be drawn"
            problems.append(Problem("logit_bias", "every token -inf", expected, "allow one"))
        if self.top_log_probs > count:
            problems.append(Problem("top_log_probs", self.top_log_probs, f"at most {count}"))
        return problems
