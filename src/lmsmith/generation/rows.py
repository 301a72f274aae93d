"""Replies being written: what each has so far, and the next token of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.generation.kernels import Kernels
from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.penalties import History, adjust
from lmsmith.generation.requests import FinishReason, Request, TokenEvent
from lmsmith.generation.sampling import row_uniforms
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.stops import StopScanner
from lmsmith.tokenizers import StreamDecoder, Tokenizer


@dataclass
class Row:
    """A reply being written.

    Attributes:
        request, sample: what it answers, and which of the answers it is.
        row: of the cache.
        room: tokens it may still get.
        uniforms: its chance, a number a token; empty where there is none in it.
        fills_context: whether the context ends before ``max_new_tokens``.
        prompt_log_probs: to be given with its first token.
        last: the token drawn last, which is not read yet.
        drawn: tokens so far.
    """

    request: int
    sample: int
    settings: SamplingSettings
    row: int
    room: int
    uniforms: list[float]
    history: History | None
    decoder: StreamDecoder | None
    scanner: StopScanner | None
    fills_context: bool
    prompt_log_probs: tuple[TokenLogProb, ...] = ()
    last: int = -1
    drawn: int = 0

    def take(self, token: int, log_prob: TokenLogProb | None) -> TokenEvent:
        """Let the reply go on with a token."""
        first = self.drawn == 0
        self.last, self.drawn, self.room = token, self.drawn + 1, self.room - 1
        if self.history is not None:
            self.history.add(token)
        text, finish = self._text_of(token)
        prompt = self.prompt_log_probs if first else ()
        return TokenEvent(self.request, self.sample, token, log_prob, prompt, text, finish)

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        """What a token adds to the reply's text, and whether the reply ends with it."""
        ended_by_token = token in self.settings.stop_tokens
        text = ""
        if self.decoder is not None and not ended_by_token:
            text = self.decoder.push(token)
        if self.scanner is not None:
            text = self.scanner.push(text)
        finish: FinishReason | None = None
        if ended_by_token or (self.scanner is not None and self.scanner.stopped):
            finish = "stop"
        elif self.room == 0:
            finish = "context" if self.fills_context else "length"
        if finish is not None and self.scanner is not None:
            text += self.scanner.flush()
        return text, finish


def new_rows(
    request: Request,
    number: int,
    cache_rows: Sequence[int],
    *,
    room: int,
    tokenizer: Tokenizer | None = None,
    prompt_log_probs: tuple[TokenLogProb, ...] = (),
) -> list[Row]:
    """A request's replies before their first token, one for each row of the cache."""
    settings = request.settings
    streams = [request.stream + sample for sample in range(settings.samples)]
    uniforms: list[list[float]] = [[] for _ in streams]
    if settings.temperature > 0:
        uniforms = row_uniforms(settings.seed, streams, room).tolist()
    return [
        Row(
            request=number,
            sample=sample,
            settings=settings,
            row=row,
            room=room,
            uniforms=uniforms[sample],
            history=History(list(request.prompt)) if settings.has_penalties else None,
            decoder=StreamDecoder(tokenizer) if tokenizer is not None else None,
            scanner=StopScanner(settings.stop) if settings.stop else None,
            fills_context=room < settings.max_new_tokens,
            prompt_log_probs=prompt_log_probs,
        )
        for sample, row in enumerate(cache_rows)
    ]


def draw_tokens(
    logits_bv: Tensor,
    settings: Sequence[SamplingSettings],
    uniforms: Sequence[float],
    histories: Sequence[History | None],
    kernels: Kernels,
) -> list[int]:
    """The next token of each row, by its own settings; rows with equal ones are drawn together."""
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for place, row in enumerate(settings):
        key = (row.temperature, row.top_k, row.top_p, row.min_p)
        groups.setdefault(key, []).append(place)
    tokens = [0] * len(settings)
    for places in groups.values():
        chosen = [settings[place] for place in places]
        part_bv = logits_bv if len(places) == len(tokens) else logits_bv[places]
        if any(row.logit_bias or row.has_penalties for row in chosen):
            parts = zip(part_bv, chosen, (histories[place] for place in places), strict=True)
            part_bv = torch.stack([adjust(*part) for part in parts])
        uniform_b = torch.tensor([uniforms[place] for place in places], dtype=torch.float64)
        drawn = kernels.draw(part_bv, chosen[0], uniform_b).tolist()
        for place, token in zip(places, drawn, strict=True):
            tokens[place] = token
    return tokens
