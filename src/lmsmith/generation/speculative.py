"""Speculative decoding: the model reads several guessed tokens at once (Leviathan et al. 2023).

A token x guessed from q is kept with probability min(1, p(x) / q(x)); at the first that is not, one
is drawn from max(0, p − q), normalised. The reply has the model's distribution p whatever q is, and
at temperature 0 it is the model's greedy text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.engine import ready
from lmsmith.generation.inference import InferenceDecoder, mask_of
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.generation.log_probs import drawn_log_probs, prompt_log_probs
from lmsmith.generation.prefix_cache import common_length
from lmsmith.generation.requests import (
    Request,
    RunningSequence,
    TokenEvent,
    check_requests,
)
from lmsmith.generation.sampling import adjust, filtered
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine


@dataclass(frozen=True)
class Draft:
    """Guessed tokens, and the distribution of each, (g, vocabulary); None if each was certain."""

    tokens: list[int]
    probabilities_gv: Tensor | None = None


class Drafter(Protocol):
    """Guesses what comes next."""

    def guess(self, tokens: Sequence[int], count: int, chance: np.random.Generator) -> Draft:
        """At most ``count`` tokens that may follow ``tokens``."""


@dataclass(frozen=True)
class PromptLookup:
    """Guesses what followed the last occurrence of the text's last tokens; needs no model.

    The last ``longest`` tokens are searched first, then fewer, down to ``shortest``.
    """

    longest: int = 3
    shortest: int = 1

    def guess(self, tokens: Sequence[int], count: int, chance: np.random.Generator) -> Draft:
        text = list(tokens)
        for size in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            end = text[-size:]
            for start in range(len(text) - size - 1, -1, -1):
                if text[start : start + size] == end:
                    return Draft(text[start + size : start + size + count])
        return Draft([])


class DraftModel:
    """A smaller model of the same vocabulary.

    Its draws best have the ``settings`` of the request; ``machine`` gives its precision.
    """

    def __init__(
        self,
        decoder: Decoder | InferenceDecoder,
        settings: SamplingSettings,
        *,
        machine: ResolvedMachine | None = None,
    ) -> None:
        self._model, self._settings = ready(decoder, machine), settings
        self._cache: PagedCache | None = None
        self._read: list[int] = []
        self._row = 0

    def guess(self, tokens: Sequence[int], count: int, chance: np.random.Generator) -> Draft:
        model = self._model
        count = min(count, model.config.context - len(tokens))
        if count < 1:
            return Draft([])
        text, distributions = list(tokens), []
        for _ in range(count):
            logits_v = filtered(self._logits(text)[None], self._settings)[0]
            distributions.append(logits_v.double().softmax(-1))
            text.append(draw(distributions[-1], chance.random()))
        return Draft(text[-count:], torch.stack(distributions))

    def _logits(self, text: list[int]) -> Tensor:
        """Logits after ``text``; what the cache holds of it is not read again."""
        shared = common_length(self._read, text[:-1])
        if self._cache is not None and not self._model.config.window:
            self._cache.truncate(self._row, shared)
        elif self._cache is None or shared < len(self._read):
            # A banded layer has freed what it would need: all is read again.
            self._cache = self._model.new_cache(1, self._model.config.context)
            self._row, shared = self._cache.open(), 0
        hidden_td = self._model.read([(self._row, text[shared:])], self._cache)
        self._read = list(text)
        return self._model.logits(hidden_td[-1:])[0]


def speculate(
    decoder: Decoder | InferenceDecoder,
    prompt: Sequence[int],
    settings: SamplingSettings,
    drafter: Drafter,
    *,
    guesses: int = 4,
    tokenizer: Tokenizer | None = None,
) -> Iterator[TokenEvent]:
    """A reply, token by token.

    Its distribution is that of `stream` with these settings, and at temperature 0 its text. Sampled
    tokens differ, as the random numbers are used differently.

    Args:
        decoder: the model.
        prompt: token ids.
        settings: of one reply. Log-probabilities are the model's, whatever was guessed.
        drafter: guesses tokens.
        guesses: maximum number of tokens guessed at once.
        tokenizer: says which tokens may follow; without it all may, whatever their bytes are.

    Raises:
        UserError: settings out of range, several samples or stop texts, or a prompt that cannot
            be answered.
    """
    model = ready(decoder)
    request = Request(prompt, settings, "the prompt")
    check_requests(model.config, [request], tokenizer)
    vocabulary = vocabulary_of(tokenizer, model.config.vocabulary_size)
    if settings.samples != 1:
        raise UserError(f"samples = {settings.samples}: speculate writes one reply", "use Engine")
    max_tokens = request.max_tokens(model.config.context)
    cache = model.new_cache(1, len(prompt) + max_tokens)
    row = cache.open()
    reply = RunningSequence(request, 0, 0, row, max_tokens, vocabulary, tokenizer)
    text = reply.tokens
    chance = np.random.Generator(np.random.Philox(key=np.array([settings.seed, 1], np.uint64)))
    while True:
        draft = drafter.guess(text, min(guesses, reply.tokens_left - 1), chance)
        unread = text[cache.lengths[row] :]
        hidden_td = model.read([(row, unread + draft.tokens)], cache)
        if settings.prompt_log_probs and not reply.drawn:
            reply.prompt_log_probs = prompt_log_probs(
                model, prompt, hidden_td, settings.top_log_probs, vocabulary
            )
        logits_tv = model.logits(hidden_td[len(unread) - 1 :])
        for place, token in enumerate(_accept(logits_tv, draft, reply, chance)):
            (log_prob,) = drawn_log_probs(logits_tv[place : place + 1], [reply], [token])
            event = reply.append(token, log_prob)
            yield event
            if event.finish is not None:
                return
        cache.truncate(row, len(text) - 1)


def _accept(
    logits_tv: Tensor, draft: Draft, reply: RunningSequence, chance: np.random.Generator
) -> Iterator[int]:
    """The accepted guesses and one token of the model after them; ``reply`` takes each in turn."""
    for place in range(len(draft.tokens) + 1):
        logits_v = adjust(logits_tv[place], reply.settings, reply.history)
        mask = mask_of(logits_v[None], [reply])
        target_v = filtered(logits_v[None], reply.settings, mask)[0].double().softmax(-1)
        if place == len(draft.tokens):
            yield draw(target_v, chance.random())
            return
        guess = draft.tokens[place]
        if draft.probabilities_gv is not None:
            guessed_v = draft.probabilities_gv[place]
        else:
            guessed_v = torch.zeros_like(target_v).index_fill(0, torch.tensor(guess), 1.0)
        token, kept = keep_or_draw(target_v, guessed_v, guess, chance)
        yield token
        if not kept:
            return


def keep_or_draw(
    target_v: Tensor, guessed_v: Tensor, guess: int, chance: np.random.Generator
) -> tuple[int, bool]:
    """The token, and whether it is the guess x ~ q (Leviathan et al. 2023, algorithm 1).

    ``target_v`` is p, float64 (vocabulary,), and ``guessed_v`` q.
    """
    if chance.random() * float(guessed_v[guess]) < float(target_v[guess]):
        return guess, True
    rest_v = (target_v - guessed_v).clamp(min=0)
    if not float(rest_v.sum()) > 0:  # p = q but for rounding
        rest_v = target_v
    return draw(rest_v, chance.random()), False


def draw(weights_v: Tensor, uniform: float) -> int:
    """A token with probability in proportion to its weight, by inverting the CDF."""
    running_v = weights_v.double().cumsum(0)
    target = min(uniform * float(running_v[-1]), float(np.nextafter(float(running_v[-1]), 0.0)))
    return int(torch.searchsorted(running_v, torch.tensor(target).double(), right=True))
