"""``POST /v1/chat/completions`` and ``/v1/completions``: messages and texts are continued."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.requests import Reply, TokenEvent, TokenLogProb
from lmsmith.server.auth import visitor_of
from lmsmith.server.engine import AsyncEngine, Generation
from lmsmith.server.requests import ChatBody, CompletionBody, parse_chat, parse_completion
from lmsmith.server.stream import ReplyFormat, finish_reason, respond, token_text, usage
from lmsmith.tokenizers import StreamDecoder, Tokenizer

router = APIRouter()

LOWEST_LOG_PROB = -9999.0


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """The assistant's next message, whole or as a stream."""
    engine: AsyncEngine = request.app.state.engine
    given = engine.models, engine.limits, visitor_of(request).cache_salt, engine.texts
    generation = engine.submit(await parse_chat(body, *given))
    return await respond(request, generation, _ChatFormat(generation), body)


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continuations, whole or as a stream; with ``echo`` after their prompts."""
    engine: AsyncEngine = request.app.state.engine
    given = engine.models, engine.limits, visitor_of(request).cache_salt, engine.texts
    generation = engine.submit(await parse_completion(body, *given))
    return await respond(request, generation, _CompletionFormat(generation, body), body)


class _ChatFormat(ReplyFormat):
    """Replies as chat choices."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        (self._prompt,) = generation.prompts
        # Tokens of each reply whose log-probabilities were sent; -1 before the first chunk.
        self._sent = [-1] * len(self._prompt.replies)

    def whole(self) -> dict[str, Any]:
        return super().whole() | {"created": int(time.time())}  # when the reply is whole

    def choices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": self._log_probs(reply, 0),
                "finish_reason": finish_reason(reply),
            }
            for index, reply in enumerate(self._prompt.replies)
        ]

    def new_choices(self, prompt: int, event: TokenEvent) -> Iterator[dict[str, Any]]:
        index, reply = event.sample, self._prompt.replies[event.sample]

        def choice(
            delta: dict[str, Any], log_probs: object = None, finish: str | None = None
        ) -> dict[str, Any]:
            return {"index": index, "delta": delta, "logprobs": log_probs, "finish_reason": finish}

        if self._sent[index] < 0:
            self._sent[index] = 0
            yield choice({"role": "assistant", "content": ""})
        if event.text:
            log_probs = self._log_probs(reply, self._sent[index])
            self._sent[index] = len(reply.log_probs)
            yield choice({"content": event.text}, log_probs)
        if event.finish is not None:
            log_probs = self._log_probs(reply, self._sent[index])
            has_more = log_probs is not None and log_probs["content"]
            yield choice({}, log_probs if has_more else None, finish_reason(reply))

    def _log_probs(self, reply: Reply, start: int) -> dict[str, Any] | None:
        """Log-probabilities of a reply's tokens from ``start``, without the token that ended it."""
        if not self._prompt.request.settings.wants_log_probs:
            return None
        tokenizer, found = self.generation.model.tokenizer, reply.log_probs[start:]
        if reply.finish == "stop" and reply.tokens[-1] in tokenizer.stop_tokens:
            found = found[:-1]
        content = [
            {
                **_entry(tokenizer, each.token, each.log_prob),
                "top_logprobs": [_entry(tokenizer, *pair) for pair in each.top],
            }
            for each in found
        ]
        return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, token: int, log_prob: float) -> dict[str, Any]:
    control = token in tokenizer.control_tokens or token >= tokenizer.vocabulary_size
    content = b"" if control else tokenizer.token_bytes(token)
    text = token_text(tokenizer, token)
    return {"token": text, "logprob": max(log_prob, LOWEST_LOG_PROB), "bytes": list(content)}


class _Sent:
    """How much of a completion was sent.

    Attributes:
        tokens: the number of its tokens whose log-probabilities were sent.
        begun: whether anything was sent.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]) -> None:
        self._tokenizer, self._decoder = tokenizer, StreamDecoder(tokenizer, after)
        self._characters = self.tokens = 0
        self.begun = False

    def offset(self, token: int) -> int:
        """Position of the next token in the text, which follows ``after``, in characters.

        A token in the midst of a character begins where the character does.
        """
        at = self._characters
        if token < self._tokenizer.vocabulary_size:
            self._characters += len(self._decoder.push(token))
        return at


class _CompletionFormat(ReplyFormat):
    """Replies as completion choices."""

    object = chunk_object = "text_completion"

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        super().__init__(generation)
        self._tokenizer = generation.model.tokenizer
        self._prompts_only = body.max_tokens == 0
        self._echo, self._wants_log_probs = bool(body.echo), body.logprobs is not None
        self._sent = {
            (number, sample): _Sent(self._tokenizer, () if self._echo else each.request.prompt)
            for number, each in enumerate(generation.prompts)
            for sample in range(len(each.replies))
        }

    def choices(self) -> list[dict[str, Any]]:
        prompts = self.generation.prompts
        return [
            self._choice(number, sample, prompts[number].replies[sample].text)
            for number, sample in self._sent
        ]

    def new_choices(self, prompt: int, event: TokenEvent) -> Iterator[dict[str, Any]]:
        has_text = event.text and not self._prompts_only
        begins = self._echo and not self._sent[prompt, event.sample].begun
        if has_text or event.finish is not None or begins:
            yield self._choice(prompt, event.sample, event.text)

    def usage(self) -> dict[str, Any]:
        prompt, new, cached = self.generation.token_counts
        return super().usage() | usage(prompt, 0 if self._prompts_only else new, cached)

    def _choice(self, number: int, sample: int, text: str) -> dict[str, Any]:
        """New text of a reply, with the log-probabilities that were not sent."""
        prompt, sent = self.generation.prompts[number], self._sent[number, sample]
        reply = prompt.replies[sample]
        text = "" if self._prompts_only else text
        found: list[TokenLogProb | int] = []
        if self._echo and not sent.begun:
            prefix, tokens = self.generation.parsed.prefixes[number], prompt.request.prompt
            text = self._tokenizer.decode(tokens[prefix:], special=True) + text
            if self._wants_log_probs:  # the first token of a text has none
                found += reply.prompt_log_probs[max(prefix - 1, 0) :]
                found = found if prefix else [tokens[0], *found]
        if not self._prompts_only:
            found += reply.log_probs[sent.tokens :]  # with the stop token: clients expect it last
        sent.begun, sent.tokens = True, len(reply.log_probs)
        return {
            "index": number * len(prompt.replies) + sample,
            "text": text,
            "logprobs": self._log_probs(found, sent) if self._wants_log_probs else None,
            "finish_reason": finish_reason(reply),
        }

    def _log_probs(self, found: Sequence[TokenLogProb | int], sent: _Sent) -> dict[str, list[Any]]:
        """A choice's ``logprobs``; a bare token is one without: the first of a prompt."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        result: dict[str, list[Any]] = {name: [] for name in names}
        for each in found:
            token = each if isinstance(each, int) else each.token
            log_prob, top = None, None
            if not isinstance(each, int):
                log_prob = max(each.log_prob, LOWEST_LOG_PROB)
                top = {token_text(self._tokenizer, t): max(p, LOWEST_LOG_PROB) for t, p in each.top}
            shown = (token_text(self._tokenizer, token), log_prob, top, sent.offset(token))
            for name, value in zip(names, shown, strict=True):
                result[name].append(value)
        return result
