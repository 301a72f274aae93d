"""A request, the sequences that answer it, their events, and which requests are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lmsmith.core.config import Problem
from lmsmith.core.errors import UserError
from lmsmith.generation.sampling import History, row_uniforms
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.config import ModelConfig
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.token_bytes import BOUNDARY, LONGEST

FinishReason = Literal["stop", "length", "context"]


CacheKey = tuple[str, str]
"""Salt and adapter: keys and values differ between adapters."""


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Attributes:
        prompt: token ids.
        settings: how its replies are drawn.
        name: its name in errors; ``prompt`` if empty.
        stream: sample i draws its random numbers from stream + i of the seed.
        salt: cache salt. A request reuses only what requests of the same salt have read, so that
            nobody learns from a count or a time what others have asked. It is also the owner, by
            whom the scheduler shares its rows (`lmsmith.generation.fair_share`).
        group: requests that came together, by which an owner's share is divided.
        forced: the tokens of each sample, whatever the model prefers: with ``settings.log_probs``
            they get their log-probabilities, and the prompt is read once for all of them. The last
            token of each is predicted and not read, so it may lie one past the context.
        keep: whether its part of the cache is kept for later requests that begin so.
        is_message: whether the reply is a text of its own, not the continuation of a text: a
            tokenizer may begin texts with a space, which is no part of them.
        adapter: name of the adapter that answers it, of those of the model; the base if empty.
    """

    prompt: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    name: str = ""
    stream: int = 0
    salt: str = ""
    group: str = ""
    forced: tuple[tuple[int, ...], ...] = ()
    keep: bool = True
    is_message: bool = False
    adapter: str = ""

    @property
    def cache_key(self) -> CacheKey:
        """What two requests have in common if one may read what the other has cached."""
        return self.salt, self.adapter

    def max_tokens(self, context: int) -> int:
        """Maximum number of tokens of each reply, by a model with this context."""
        return min(context + bool(self.forced) - len(self.prompt), self.settings.max_new_tokens)

    @property
    def keeps(self) -> bool:
        """Whether its part of the cache is kept; prompts that are scored seldom come again."""
        return self.keep and not self.settings.prompt_log_probs


@dataclass(frozen=True)
class TokenLogProb:
    """A token's log-probability, and those of the alternatives in its place.

    Attributes:
        token: its id.
        log_prob: log p(token | what is before it), in nats.
        top: (token, log-probability) of the likeliest there, the likeliest first.
        greedy: of a forced token, whether it is the likeliest in its place.
        greedy_allowed: the same among those that the request's ``logit_bias`` does not forbid.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    greedy: bool | None = None
    greedy_allowed: bool | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One token of a reply, as soon as it is drawn.

    Attributes:
        request: the number that `Scheduler.submit` gave.
        sample: which of the request's replies, from 0.
        token: its id.
        log_prob: if the request asked for it.
        prompt_log_probs: those of the prompt's tokens but the first, with a reply's first token,
            if the request asked for them.
        text: the new text of the reply, if the engine has a tokenizer.
        finish: why the reply ends with this token; None if it does not.
    """

    request: int
    sample: int
    token: int
    log_prob: TokenLogProb | None = None
    prompt_log_probs: tuple[TokenLogProb, ...] = ()
    text: str = ""
    finish: FinishReason | None = None


@dataclass(frozen=True)
class Counted:
    """Tokens of a reply's prompt and of the reply, where another server has counted them.

    Attributes:
        request: the number that `submit` gave.
        prompt, new, cached: tokens of the prompt, of the reply, and of the prompt's from its cache.
        estimated: whether that server gave no counts.
    """

    request: int
    prompt: int
    new: int
    cached: int
    estimated: bool = False


@dataclass
class Reply:
    """A whole reply.

    Attributes:
        tokens: its stop token included.
        text: without stop token or stop text; empty if the engine has no tokenizer.
        finish: ``stop`` (a stop token or text), ``length`` (max_new_tokens), or ``context`` (the
            context is full).
        log_probs: of its tokens, if the request asked for them.
        prompt_log_probs: of the prompt's tokens but the first, likewise.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    log_probs: list[TokenLogProb] = field(default_factory=list)
    prompt_log_probs: tuple[TokenLogProb, ...] = ()

    def add(self, event: TokenEvent) -> None:
        """The next token."""
        self.tokens.append(event.token)
        self.text += event.text
        self.finish = event.finish
        if event.log_prob is not None:
            self.log_probs.append(event.log_prob)
        self.prompt_log_probs = self.prompt_log_probs or event.prompt_log_probs


class RunningSequence:
    """A reply in progress.

    Args:
        request: its prompt has been read.
        number, sample: of the request, and of this reply among its samples.
        row: of the cache.
        max_tokens: of the reply.
        vocabulary: the ids that it may write.
        tokenizer: turns tokens into text.
        prompt_log_probs: given with its first token.

    Attributes:
        tokens: of the prompt and of the reply so far; the last one drawn is not read yet.
        tokens_left: that it may still get.
        drawn: number of tokens so far.
        finished: whether it has its last token.
        forced: its tokens, if they are given.
        keep: whether its part of the cache is kept.
        fills_context: whether the context ends before ``max_new_tokens``.
        uniforms: its random numbers, one a token; empty at temperature 0.
        source: its request.
        since_admitted: number of tokens drawn since it was last admitted.
        guesses: tokens that are read after the last one, before it is known what is drawn.
        accepted: how many of the last guesses were drawn.
        state: where the bytes of its text stand in a character.
    """

    def __init__(
        self,
        request: Request,
        number: int,
        sample: int,
        row: int,
        max_tokens: int,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer | None,
        prompt_log_probs: tuple[TokenLogProb, ...] = (),
    ) -> None:
        prompt, settings = list(request.prompt), request.settings
        self.request, self.sample, self.row, self.source = number, sample, row, request
        self.since_admitted = 0
        self.settings, self.vocabulary, self.keep = settings, vocabulary, request.keeps
        self.prompt_log_probs = prompt_log_probs
        self.forced = request.forced[sample] if request.forced else ()
        self.tokens, self.tokens_left = prompt, len(self.forced) or max_tokens
        self.drawn, self.finished = 0, False
        self.fills_context = max_tokens < settings.max_new_tokens and not request.forced
        self.guesses, self.accepted = list[int](), 0
        self.uniforms: list[float] = []
        if settings.temperature > 0:
            stream = request.stream + sample
            self.uniforms = row_uniforms(settings.seed, [stream], max_tokens)[0].tolist()
        self.history = History(prompt) if settings.has_penalties else None
        self.state = vocabulary.state_after(prompt)
        self.scanner = StopScanner(settings.stop) if settings.stop else None
        self.decoder = None
        if tokenizer is not None:
            self.decoder = StreamDecoder(tokenizer, () if request.is_message else request.prompt)
            if self.state != BOUNDARY:  # a character that the prompt has begun is part of the reply
                for token in request.prompt[-LONGEST:]:
                    self.decoder.push(token)

    @property
    def key(self) -> tuple[str, str]:
        """Owner and group."""
        return self.source.salt, self.source.group

    @property
    def uniform(self) -> float:
        """Random number of the next token."""
        return self.uniforms[self.drawn] if self.uniforms else 0.0

    def append(self, token: int, log_prob: TokenLogProb | None) -> TokenEvent:
        """Add a token."""
        prompt = () if self.drawn else self.prompt_log_probs
        self.tokens.append(token)
        self.state = self.vocabulary.next(self.state, token)
        self.drawn, self.tokens_left = self.drawn + 1, self.tokens_left - 1
        self.since_admitted += 1
        if self.history is not None:
            self.history.add(token)
        text, finish = self._text_of(token)
        self.finished = finish is not None
        return TokenEvent(self.request, self.sample, token, log_prob, prompt, text, finish)

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that a token adds, and why the reply ends with it, if it does."""
        is_stop, scanner = token in self.settings.stop_tokens, self.scanner
        text = "" if self.decoder is None or is_stop else self.decoder.push(token)
        if scanner is not None:
            text = scanner.push(text)
        finish: FinishReason | None = None
        if is_stop or (scanner is not None and scanner.stopped):
            finish = "stop"
        elif self.tokens_left == 0:
            finish = "context" if self.fills_context else "length"
        if finish is not None and scanner is not None:
            text += scanner.flush()
        return text, finish


class StopScanner:
    """Text that comes in pieces, up to the first of the stop texts.

    What may be the beginning of a stop text is held back until it is known not to be.

    Attributes:
        stopped: whether a stop text has come; later text is ignored.
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
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        known, self._held = self._held[:cut], self._held[cut:]
        return known

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        rest, self._held = ("" if self.stopped else self._held), ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of ``text`` that are the beginning of ``stop``."""
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


def check_requests(
    config: ModelConfig, requests: Sequence[Request], tokenizer: Tokenizer | None = None
) -> None:
    """Refuse requests that cannot be answered, all problems at once, each with its request's name.

    Args:
        config: of the model.
        requests: to be answered.
        tokenizer: says which ids are tokens; without one all of the model's are.

    Raises:
        UserError: settings out of range, a prompt that is empty or leaves no room in the context,
            tokens the model does not have, stop texts for an engine without a tokenizer.
    """
    problems: list[tuple[str, str]] = []
    vocabulary = vocabulary_of(tokenizer, config.vocabulary_size)
    shared, checked = all(r.settings is requests[0].settings for r in requests), set[int]()
    for request in requests:
        if id(request.settings) not in checked:  # those of a batch often share their settings
            checked.add(id(request.settings))
            where = "" if shared or not request.name else f"{request.name}: "
            for found in _check_settings(request.settings, vocabulary, tokenizer is not None):
                problems.append((f"{where}{found}", ""))
        problem = _check_prompt(request, config, vocabulary) or _check_forced(request, config)
        if problem is not None:
            name = request.name or "the prompt"
            problems.append((f"{name}{problem[0]}", problem[1]))
    if len(problems) == 1:
        raise UserError(*problems[0])
    if problems:
        lines = "\n".join("  " + "; ".join(filter(None, problem)) for problem in problems)
        raise UserError(f"{len(problems)} problems\n{lines}")


def _check_settings(
    settings: SamplingSettings, vocabulary: Vocabulary, has_text: bool
) -> list[Problem]:
    problems = settings.check() + settings.check_vocabulary(vocabulary)
    if settings.stop and not has_text:
        fix = "give the engine a tokenizer, or use stop_tokens"
        problems.append(Problem("stop", list(settings.stop), "no texts without a tokenizer", fix))
    return problems


def _check_prompt(
    request: Request, config: ModelConfig, vocabulary: Vocabulary
) -> tuple[str, str] | None:
    """What is wrong, to follow the prompt's name, and the fix."""
    prompt, context = request.prompt, config.context
    if not len(prompt):
        return " is empty", "begin it with the end-of-text token"
    if len(prompt) >= context + bool(request.forced):
        what = f" has {len(prompt)} tokens; the model's context of {context} leaves no room for"
        return f"{what} a reply", "shorten the prompt, or use a model with a longer context"
    if not (min(prompt) >= 0 and max(prompt) < config.vocabulary_size):
        what = f" has token ids outside 0 to {config.vocabulary_size - 1}"
        return what, "encode it with the model's own tokenizer"
    if vocabulary.without_token and (unknown := vocabulary.unknown(prompt)):
        return f" has ids that no token has: {unknown[:3]}", f"use {vocabulary.described}"
    return None


def _check_forced(request: Request, config: ModelConfig) -> tuple[str, str] | None:
    forced = request.forced
    if not forced:
        return None
    if len(forced) != request.settings.samples or not all(forced):
        return ": a text to write for each sample, and none empty", "give as many"
    longest, most = max(map(len, forced)), request.max_tokens(config.context)
    if longest > most:
        what = f": {longest} tokens to write, where {most} may follow the prompt"
        return what, "shorten the prompt, or raise max_new_tokens"
    if not all(0 <= token < config.vocabulary_size for tokens in forced for token in tokens):
        return ": token ids to write that the model does not have", "use its tokenizer"
    return None
