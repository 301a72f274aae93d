"""``POST /v1/completions``: the continuation of texts or of tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.requests import Reply, TokenEvent
from lmsmith.server import asking, responses
from lmsmith.server.answering import Answer, Question, Serving
from lmsmith.server.errors import ApiError, unsupported
from lmsmith.server.protocol import CompletionBody
from lmsmith.server.token_text import completion_log_probs, finish_reason, usage

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
    has_start = _texts_were_given(body)
    if has_start:
        prompts = await asyncio.to_thread(asking.completion_prompts, model, body)
    else:
        prompts = asking.completion_prompts(model, body)
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
    answer = serving.answer(model, asking.requests_for(prompts, settings), name)
    shown = _Shown(answer, body, has_start=has_start, silent=longest == 0)
    headers = {"x-request-id": name}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return responses.EventStream(answer, shown.chunks(wants_usage), headers)
    return await responses.answered(request, answer, shown.whole, headers)


def _texts_were_given(body: CompletionBody) -> bool:
    given = body.prompt
    return given is None or isinstance(given, str) or not given or isinstance(given[0], str)


class _Shown:
    """An answer as completion choices.

    Args:
        answer: whose they are.
        body: what was asked.
        has_start: prompts were texts, and begin with a token that the client did not write.
        silent: only the prompts are asked for.
    """

    def __init__(
        self, answer: Answer, body: CompletionBody, *, has_start: bool, silent: bool
    ) -> None:
        self._answer, self._silent = answer, silent
        self._echo, self._log_probs = bool(body.echo), body.logprobs is not None
        self._start = 1 if has_start else 0
        self._opening = {
            "id": answer.name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": answer.model.name,
        }

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(number, sample, self._echoed(question) + self._text(reply), 0, reply)
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

    def _echoed(self, question: Question) -> str:
        if not self._echo:
            return ""
        tokens = question.request.prompt[self._start :]
        return self._answer.model.tokenizer.decode(tokens, special=True)

    def _choice(
        self, number: int, sample: int, text: str, told: int, reply: Reply
    ) -> dict[str, Any]:
        """What is new of a reply, ``told`` of whose tokens have been shown with probabilities."""
        question = self._answer.questions[number]
        return {
            "index": number * len(question.replies) + sample,
            "text": text,
            "logprobs": self._log_probs_of(question, told, reply) if self._log_probs else None,
            "finish_reason": finish_reason(reply),
        }

    def _log_probs_of(self, question: Question, told: int, reply: Reply) -> dict[str, Any]:
        tokenizer = self._answer.model.tokenizer
        found: list[TokenLogProb | int] = []
        if not self._silent:
            found += reply.log_probs[told:]  # what ended it as well: clients count on a last one
        if self._echo and not told:
            found = [*self._prompt_log_probs(question, reply), *found]
        offset = len(self._echoed(question)) if told else 0
        offset += len(tokenizer.decode(reply.tokens[:told]))
        return completion_log_probs(tokenizer, found, offset)

    def _prompt_log_probs(self, question: Question, reply: Reply) -> list[TokenLogProb | int]:
        """Of the prompt as the client wrote it: its first token has none if nothing was before."""
        if self._start:
            return list(reply.prompt_log_probs)
        return [question.request.prompt[0], *reply.prompt_log_probs]

    async def chunks(self, wants_usage: bool) -> AsyncIterator[list[dict[str, Any]]]:
        told: dict[tuple[int, int], int] = {}
        async for batch in self._answer.events():
            found = [self._chunk(number, event, told, wants_usage) for number, event in batch]
            if chunks := [each for each in found if each is not None]:
                yield chunks
        if wants_usage:
            yield [{**self._opening, "choices": [], "usage": self._usage()}]

    def _chunk(
        self, number: int, event: TokenEvent, told: dict[tuple[int, int], int], wants_usage: bool
    ) -> dict[str, Any] | None:
        """What a token adds to its reply, if that is anything; ``told`` is brought up to date."""
        question, key = self._answer.questions[number], (number, event.sample)
        reply = question.replies[event.sample]
        text = "" if self._silent else event.text
        if key not in told:
            text = self._echoed(question) + text
        if not text and event.finish is None:
            return None
        choice = self._choice(number, event.sample, text, told.get(key, 0), reply)
        told[key] = len(reply.log_probs)
        return {
            **self._opening,
            "choices": [choice],
            **({"usage": None} if wants_usage else {}),
        }
