"""A reply while it is written: from each token that is drawn to what there is to tell of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmsmith.generation.penalties import History
from lmsmith.generation.requests import FinishReason, Request, TokenEvent, TokenLogProb
from lmsmith.generation.sampling import row_uniforms
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.stops import StopScanner
from lmsmith.tokenizers import StreamDecoder, Tokenizer


@dataclass
class Writing:
    """One of a request's replies.

    Attributes:
        request: its number.
        sample: which of the request's replies.
        settings: how it is drawn.
        row: of the cache.
        tokens: of the prompt and of the reply so far.
        room: tokens that may still come.
        fills_context: whether the context ends before ``max_new_tokens``.
        uniforms: random numbers, one for each token; none at temperature 0.
        history: what penalties depend on, if there are any.
    """

    request: int
    sample: int
    settings: SamplingSettings
    row: int
    tokens: list[int]
    room: int
    fills_context: bool
    uniforms: list[float]
    history: History | None
    _decoder: StreamDecoder | None
    _scanner: StopScanner | None
    _drawn: int = field(default=0)

    @property
    def uniform(self) -> float:
        """The random number of the token that comes next."""
        return self.uniforms[self._drawn] if self.uniforms else 0.0

    def take(self, token: int, log_prob: TokenLogProb | None) -> TokenEvent:
        """The reply goes on, or ends, with this token."""
        self.tokens.append(token)
        self._drawn += 1
        self.room -= 1
        if self.history is not None:
            self.history.add(token)
        ended = token in self.settings.stop_tokens
        text = "" if ended or self._decoder is None else self._decoder.push(token)
        if self._scanner is not None:
            text = self._scanner.push(text)
            ended = ended or self._scanner.stopped
        finish: FinishReason | None = None
        if ended:
            finish = "stop"
        elif self.room == 0:
            finish = "context" if self.fills_context else "length"
        if finish is not None and self._scanner is not None:
            text += self._scanner.flush()
        return TokenEvent(self.request, self.sample, token, log_prob, text, finish)


def begin_replies(
    number: int, request: Request, rows: list[int], room: int, tokenizer: Tokenizer | None
) -> list[Writing]:
    """The replies to a request whose prompt has been read, one a row of the cache."""
    settings = request.settings
    streams = [request.stream + sample for sample in range(settings.samples)]
    uniforms: list[list[float]] = [[] for _ in streams]
    if settings.temperature > 0:
        uniforms = row_uniforms(settings.seed, streams, room).tolist()
    return [
        Writing(
            number,
            sample,
            settings,
            row,
            list(request.prompt),
            room,
            room < settings.max_new_tokens,
            uniforms[sample],
            History(list(request.prompt)) if settings.has_penalties else None,
            None if tokenizer is None else StreamDecoder(tokenizer),
            StopScanner(settings.stop) if settings.stop else None,
        )
        for sample, row in enumerate(rows)
    ]
