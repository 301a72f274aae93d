"""Replies being written: what each has so far, and the next token of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.generation.kernels import Kernels
from lmsmith.generation.log_probs import TokenLogProb, token_log_probs
from lmsmith.generation.requests import FinishReason, Request, TokenEvent
from lmsmith.generation.sampling import History, adjust, row_uniforms
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import ANY, Mask, Vocabulary
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.token_bytes import BOUNDARY, LONGEST


@dataclass(eq=False)
class RunningSequence:
    """A reply being written.

    Attributes:
        request, sample: what it answers, and which of the answers it is.
        row: of the cache.
        tokens: of the prompt and of the reply so far; the last one drawn is not read yet.
        tokens_left: that it may still get.
        vocabulary: the ids that it may write.
        state: where the bytes of its text stand in a character.
        uniforms: its chance, a number a token; empty where there is none in it.
        fills_context: whether the context ends before ``max_new_tokens``.
        prompt_log_probs: to be given with its first token.
        drawn: tokens of the reply so far.
        finished: whether it has its last token.
        forced: its tokens, where they are given.
        stream: of its chance.
        keep: whether its part of the cache is of use to others.
    """

    request: int
    sample: int
    settings: SamplingSettings
    row: int
    tokens: list[int]
    tokens_left: int
    vocabulary: Vocabulary
    state: int
    uniforms: list[float]
    history: History | None
    decoder: StreamDecoder | None
    scanner: StopScanner | None
    fills_context: bool
    prompt_log_probs: tuple[TokenLogProb, ...] = ()
    drawn: int = 0
    finished: bool = False
    forced: tuple[int, ...] = ()
    stream: int = 0
    keep: bool = True

    @property
    def uniform(self) -> float:
        """Its chance for the token that comes next."""
        return self.uniforms[self.drawn] if self.uniforms else 0.0

    def append(self, token: int, log_prob: TokenLogProb | None) -> TokenEvent:
        """Let the reply go on with a token."""
        first = self.drawn == 0
        self.tokens.append(token)
        self.state = self.vocabulary.next(self.state, token)
        self.drawn, self.tokens_left = self.drawn + 1, self.tokens_left - 1
        if self.history is not None:
            self.history.add(token)
        text, finish = self._text_of(token)
        self.finished = finish is not None
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
        elif self.tokens_left == 0:
            finish = "context" if self.fills_context else "length"
        if finish is not None and self.scanner is not None:
            text += self.scanner.flush()
        return text, finish


def new_sequences(
    request: Request,
    number: int,
    cache_rows: Sequence[int],
    *,
    max_tokens: int,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer | None = None,
    prompt_log_probs: tuple[TokenLogProb, ...] = (),
) -> list[RunningSequence]:
    """A request's replies before their first token, one for each row of the cache."""
    settings = request.settings
    streams = [request.stream + sample for sample in range(settings.samples)]
    uniforms: list[list[float]] = [[] for _ in streams]
    if settings.temperature > 0:
        uniforms = row_uniforms(settings.seed, streams, max_tokens).tolist()
    forced = request.forced or ((),) * settings.samples
    state = vocabulary.state_after(request.prompt)
    return [
        RunningSequence(
            request=number,
            sample=sample,
            settings=settings,
            row=row,
            tokens=list(request.prompt),
            tokens_left=len(forced[sample]) or max_tokens,
            vocabulary=vocabulary,
            state=state,
            uniforms=uniforms[sample],
            history=History(list(request.prompt)) if settings.has_penalties else None,
            decoder=_decoder(tokenizer, request, state) if tokenizer is not None else None,
            scanner=StopScanner(settings.stop) if settings.stop else None,
            fills_context=max_tokens < settings.max_new_tokens and not request.forced,
            prompt_log_probs=prompt_log_probs,
            forced=forced[sample],
            stream=streams[sample],
            keep=request.keeps,
        )
        for sample, row in enumerate(cache_rows)
    ]


def draw_tokens(
    logits_bv: Tensor, rows: Sequence[RunningSequence], kernels: Kernels
) -> list[tuple[int, TokenLogProb | None]]:
    """The next token of each row by its own settings, with its log-probability if it is asked for.

    Rows with equal settings are drawn together.

    Raises:
        UserError: logits are not finite numbers.
    """
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for place, row in enumerate(rows):
        drawn_by = row.settings
        key = (drawn_by.temperature, drawn_by.top_k, drawn_by.top_p, drawn_by.min_p)
        groups.setdefault(key, []).append(place)
    tokens = [0] * len(rows)
    for places in groups.values():
        chosen = [rows[place] for place in places]
        part_bv = _part(logits_bv, places)
        if any(row.settings.logit_bias or row.settings.has_penalties for row in chosen):
            parts = zip(part_bv, chosen, strict=True)
            part_bv = torch.stack([adjust(part, row.settings, row.history) for part, row in parts])
        uniform_b = torch.tensor([row.uniform for row in chosen], dtype=torch.float64)
        mask = mask_of(part_bv, chosen)
        drawn = kernels.draw(part_bv, chosen[0].settings, uniform_b, mask).tolist()
        for place, token in zip(places, drawn, strict=True):
            tokens[place] = token
    return list(zip(tokens, _log_probs(logits_bv, rows, tokens), strict=True))


def _decoder(tokenizer: Tokenizer, request: Request, state: int) -> StreamDecoder:
    """What makes a reply's text; a character that the prompt has begun is part of it."""
    decoder = StreamDecoder(tokenizer, () if request.is_message else request.prompt)
    if state != BOUNDARY:
        for token in request.prompt[-LONGEST:]:
            decoder.push(token)
    return decoder


def mask_of(logits_bv: Tensor, rows: Sequence[RunningSequence]) -> Mask | None:
    """What rows with equal settings may draw; every token where a bias forbids all that may."""
    temperature = rows[0].settings.temperature
    mask = rows[0].vocabulary.mask([row.state for row in rows], temperature)
    if mask is not None and any(row.settings.forbids for row in rows):
        none_b = mask.apply(logits_bv).amax(dim=-1) == -math.inf
        mask = Mask(mask.forbidden_sv, mask.states_b.masked_fill(none_b, ANY))
    return mask


def _log_probs(
    logits_bv: Tensor, rows: Sequence[RunningSequence], tokens: Sequence[int]
) -> list[TokenLogProb | None]:
    """Log-probability of each row's token; None where it is not requested."""
    log_probs: list[TokenLogProb | None] = [None] * len(rows)
    places = [place for place, row in enumerate(rows) if row.settings.wants_log_probs]
    if places:
        found = token_log_probs(
            _part(logits_bv, places),
            [tokens[place] for place in places],
            [rows[place].settings.top_log_probs for place in places],
            rows[places[0]].vocabulary,
        )
        for place, log_prob in zip(places, found, strict=True):
            log_probs[place] = log_prob
    return log_probs


def _part(logits_bv: Tensor, places: list[int]) -> Tensor:
    """Some rows of the logits; no copy if it is all of them."""
    return logits_bv if len(places) == len(logits_bv) else logits_bv[places]


class StopScanner:
    """Text that comes in pieces, up to the first of the stop texts.

    What may be the beginning of a stop text is held back until it is known not to be.

    Attributes:
        stopped: whether a stop text has come; nothing after it is taken.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is known to come before any stop text."""
        if self.stopped:
            return ""
        self._held += piece
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._held[: min(ends)]
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        known = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return known

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        rest, self._held = ("" if self.stopped else self._held), ""
        return rest


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the stop texts."""
    scanner = StopScanner(stops)
    for piece in pieces:
        yield scanner.push(piece)
        if scanner.stopped:
            return
    yield scanner.flush()
