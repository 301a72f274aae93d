"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.requests import Reply, TokenEvent
from lmsmith.server.auth import visitor_of
from lmsmith.server.engine import AsyncEngine, Generation
from lmsmith.server.requests import ChatBody, parse_chat
from lmsmith.server.stream import ReplyFormat, finish_reason, respond, token_text
from lmsmith.tokenizers import Tokenizer

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """The assistant's next message, whole or as a stream."""
    engine: AsyncEngine = request.app.state.engine
    salt = visitor_of(request).cache_salt
    parsed = await parse_chat(body, engine.models, engine.limits, salt)
    generation = engine.submit(parsed)
    return await respond(request, generation, _ChatFormat(generation), body)


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
    return {"token": text, "logprob": max(log_prob, -9999.0), "bytes": list(content)}
