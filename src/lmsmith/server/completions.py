"""``POST /v1/completions``: the continuation of texts or of tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.requests import Reply, TokenEvent
from lmsmith.server import asking, responses
from lmsmith.server.answering import Answer, Serving
from lmsmith.server.errors import ApiError, unsupported
from lmsmith.server.protocol import CompletionBody
from lmsmith.server.token_text import Offsets, completion_log_probs, finish_reason, usage

router = APIRouter()

DEFAULT_TOKENS = 16
"""Of a continuation, if nothing is said: OpenAI's."""


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continuations, at once or as they are written; with ``echo`` after their prompts."""
    serving: Serving = request.app.state.serving
    if body.suffix:
        raise unsupported("suffix", "suffix is not supported; leave it out")
    if body.best_of not in (None, body.n or 1):
        raise unsupported("best_of", "best_of is not supported; ask for n and choose")
    model = serving.model(body.model)
    prompts = await asyncio.to_thread(asking.completion_prompts, model, body)
    if len(prompts) > serving.limits.prompts:
        problem = f"prompt: at most {serving.limits.prompts} at once, not {len(prompts)}"
        raise ApiError(400, problem, param="prompt")
    longest = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if longest == 0 and not body.echo:
        raise ApiError(400, "max_tokens = 0 needs echo", param="max_tokens")
    settings = asking.sampling(
        body,
        model,
        serving.limits,
        longest=longest,
        log_probs=body.logprobs,
        prompt_log_probs=bool(body.echo) and body.logprobs is not None,
    )
    name = f"cmpl-{secrets.token_hex(12)}"
    answer = serving.answer(
        model, asking.requests_for([prompt.tokens for prompt in prompts], settings), name
    )
    shown = _Shown(answer, body, starts=[each.start for each in prompts], silent=longest == 0)
    headers = {"x-request-id": name}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return responses.EventStream(answer, shown.chunks(wants_usage), headers)
    return await responses.answered(request, answer, shown.whole, headers)


@dataclass
class _Told:
    """What has been shown of a reply.

    Attributes:
        offsets: of its tokens, and of its prompt's where that is echoed.
        tokens: of the reply, whose probabilities were shown.
        begun: whether anything was.
    """

    offsets: Offsets
    tokens: int = 0
    begun: bool = False


class _Shown:
    """An answer as completion choices.

    Args:
        answer: whose they are.
        body: what was asked.
        starts: of each prompt, how many of its first tokens the client did not write.
        silent: only the prompts are asked for.
    """

    def __init__(
        self, answer: Answer, body: CompletionBody, *, starts: Sequence[int], silent: bool
    ) -> None:
        self._answer, self._silent = answer, silent
        self._echo, self._log_probs = bool(body.echo), body.logprobs is not None
        self._starts = starts
        self._opening = {
            "id": answer.name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": answer.model.name,
        }

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(number, sample, self._text(reply), reply, self._nothing(number))
            for number, question in enumerate(self._answer.questions)
            for sample, reply in enumerate(question.replies)
        ]
        return {**self._opening, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        answer = self._answer
        written = 0 if self._silent else answer.written_tokens
        return usage(answer.prompt_tokens, written, answer.reused_tokens)

    def _text(self, reply: Reply) -> str:
        return "" if self._silent else reply.text

    def _echoed(self, number: int) -> str:
        if not self._echo:
            return ""
        tokens = self._answer.questions[number].request.prompt[self._starts[number] :]
        return self._answer.model.tokenizer.decode(tokens, special=True)

    def _nothing(self, number: int) -> _Told:
        before = () if self._echo else self._answer.questions[number].request.prompt
        return _Told(Offsets(self._answer.model.tokenizer, before))

    def _choice(
        self, number: int, sample: int, text: str, reply: Reply, told: _Told
    ) -> dict[str, Any]:
        """What is new of a reply; ``told`` is brought up to date."""
        question = self._answer.questions[number]
        found: list[TokenLogProb | int] = []
        if not told.begun:
            text = self._echoed(number) + text
            if self._echo and self._log_probs:
                found += self._prompt_log_probs(number, reply)
        if not self._silent:
            found += reply.log_probs[told.tokens :]  # what ended it, too: clients count on a last
        told.begun, told.tokens = True, len(reply.log_probs)
        tokenizer = self._answer.model.tokenizer
        return {
            "index": number * len(question.replies) + sample,
            "text": text,
            "logprobs": (
                completion_log_probs(tokenizer, found, told.offsets) if self._log_probs else None
            ),
            "finish_reason": finish_reason(reply),
        }

    def _prompt_log_probs(self, number: int, reply: Reply) -> list[TokenLogProb | int]:
        """Of the prompt as the client wrote it: its first token has none if nothing was before."""
        if start := self._starts[number]:
            return list(reply.prompt_log_probs[start - 1 :])
        return [self._answer.questions[number].request.prompt[0], *reply.prompt_log_probs]

    async def chunks(self, wants_usage: bool) -> AsyncIterator[list[dict[str, Any]]]:
        opening = {**self._opening, **({"usage": None} if wants_usage else {})}
        told = {
            (number, sample): self._nothing(number)
            for number, question in enumerate(self._answer.questions)
            for sample in range(len(question.replies))
        }
        async for batch in self._answer.events():
            chunks = [
                {**opening, "choices": [choice]}
                for number, event in batch
                for choice in self._new_of(number, event, told[number, event.sample])
            ]
            if chunks:
                yield chunks
        if wants_usage:
            yield [{**self._opening, "choices": [], "usage": self._usage()}]

    def _new_of(self, number: int, event: TokenEvent, told: _Told) -> Iterator[dict[str, Any]]:
        """The choice that shows a token, once there is something to show."""
        reply = self._answer.questions[number].replies[event.sample]
        text = "" if self._silent else event.text
        if text or event.finish is not None or (self._echo and not told.begun):
            yield self._choice(number, event.sample, text, reply, told)
