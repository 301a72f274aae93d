"""What is asked of the engine, what it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lmsmith.core.config import Problem
from lmsmith.core.errors import UserError
from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.config import ModelConfig
from lmsmith.tokenizers import Tokenizer

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Attributes:
        prompt: token ids.
        settings: how its replies are drawn.
        name: what an error calls it; ``prompt`` if empty.
        stream: of chance; sample i of the request draws from stream + i of its seed.
        salt: whose it is: it begins from what was read for requests of the same salt alone, so that
            nobody learns from the count or the time what others have asked.
        forced: what each sample writes, whatever the model would: with ``settings.log_probs`` the
            model says how likely it finds each, and reads the prompt once for all of them. The last
            token of each is predicted and not read, so it may lie one past the context.
        keep: whether what is read of it is kept for later requests that begin so.
        is_message: whether the reply is a message, a text of its own, and not what a text goes on
            with: a tokenizer may begin texts with a space, which is no part of them.
    """

    prompt: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    name: str = ""
    stream: int = 0
    salt: str = ""
    forced: tuple[tuple[int, ...], ...] = ()
    keep: bool = True
    is_message: bool = False

    def max_tokens(self, context: int) -> int:
        """Most tokens that each of its replies may get, by a model with this context."""
        return min(context + bool(self.forced) - len(self.prompt), self.settings.max_new_tokens)

    @property
    def keeps(self) -> bool:
        """Whether its part of the cache is kept; prompts that are scored seldom come again."""
        return self.keep and not self.settings.prompt_log_probs


@dataclass(frozen=True)
class TokenEvent:
    """One token of a reply, as soon as it is drawn.

    Attributes:
        request: the number that `Scheduler.submit` gave.
        sample: which of the request's replies, from 0.
        token: its id.
        log_prob: if the request asked for it.
        prompt_log_probs: with a reply's first token, if the request asked for them: those of the
            prompt's tokens but the first, before which there is nothing.
        text: what is new of the reply's text, if the engine has a tokenizer.
        finish: why the reply ends with this token; None while it goes on.
    """

    request: int
    sample: int
    token: int
    log_prob: TokenLogProb | None = None
    prompt_log_probs: tuple[TokenLogProb, ...] = ()
    text: str = ""
    finish: FinishReason | None = None


@dataclass
class Reply:
    """A whole reply.

    Attributes:
        tokens: its stop token included.
        text: without stop token or stop text; empty if the engine has no tokenizer.
        finish: ``stop`` (a stop token or text), ``length`` (max_new_tokens), ``context`` (the
            context is full), ``cancelled``.
        log_probs: of its tokens, if asked for.
        prompt_log_probs: of the prompt's tokens but the first, if asked for.
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


def check_requests(
    config: ModelConfig, requests: Sequence[Request], tokenizer: Tokenizer | None = None
) -> None:
    """Refuse what cannot be answered, all of it at once, each problem with its request's name.

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
            problems.append(problem)
    if len(problems) == 1:
        raise UserError(*problems[0])
    if problems:
        lines = "\n".join("  " + "; ".join(filter(None, problem)) for problem in problems)
        raise UserError(f"{len(problems)} problems\n{lines}")


def _check_settings(
    settings: SamplingSettings, vocabulary: Vocabulary, has_text: bool
) -> list[Problem]:
    problems = [Problem(*problem) for problem in settings.check()]
    problems += settings.check_vocabulary(vocabulary)
    if settings.stop and not has_text:
        fix = "give the engine a tokenizer, or use stop_tokens"
        problems.append(Problem("stop", list(settings.stop), "no texts without a tokenizer", fix))
    return problems


def _check_forced(request: Request, config: ModelConfig) -> tuple[str, str] | None:
    name, forced = request.name or "the prompt", request.forced
    if not forced:
        return None
    if len(forced) != request.settings.samples or not all(forced):
        return (f"{name}: a text to write for each sample, and none empty", "give as many")
    longest, most = max(map(len, forced)), request.max_tokens(config.context)
    if longest > most:
        return (
            f"{name}: {longest} tokens to write, where {most} may follow the prompt",
            "shorten the prompt, or raise max_new_tokens",
        )
    if not all(0 <= token < config.vocabulary_size for tokens in forced for token in tokens):
        return (f"{name}: token ids to write that the model does not have", "use its tokenizer")
    return None


def _check_prompt(
    request: Request, config: ModelConfig, vocabulary: Vocabulary
) -> tuple[str, str] | None:
    name, prompt = request.name or "the prompt", request.prompt
    if not len(prompt):
        return (f"{name} is empty", "begin it with the end-of-text token")
    if len(prompt) >= config.context + bool(request.forced):
        return (
            f"{name} has {len(prompt)} tokens; the model's context of {config.context} "
            "leaves no room for a reply",
            "shorten the prompt, or use a model with a longer context",
        )
    if not (min(prompt) >= 0 and max(prompt) < config.vocabulary_size):
        return (
            f"{name} has token ids outside 0 to {config.vocabulary_size - 1}",
            "encode it with the model's own tokenizer",
        )
    if vocabulary.without_token and (unknown := vocabulary.unknown(prompt)):
        return (
            f"{name} has ids that no token has: {unknown[:3]}",
            f"use {vocabulary.described}",
        )
    return None
