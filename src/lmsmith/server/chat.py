"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.requests import Reply, TokenEvent
from lmsmith.server import asking, responses
from lmsmith.server.answering import Answer, Serving
from lmsmith.server.protocol import ChatBody
from lmsmith.server.token_text import chat_log_probs, finish_reason, shown_log_probs, usage

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """The assistant's next message, at once or as it is written."""
    serving: Serving = request.app.state.serving
    asking.refuse_unsupported(body)
    model = serving.model(body.model)
    messages = asking.plain_messages(body.messages)
    tokens = await asyncio.to_thread(
        asking.chat_tokens, model, messages, add_special_tokens=body.add_special_tokens
    )
    longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    settings = asking.sampling(
        body,
        model,
        serving.limits,
        longest=longest,
        log_probs=(body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None,
    )
    name = f"chatcmpl-{secrets.token_hex(12)}"
    answer = serving.answer(model, asking.requests_for([tokens], settings, is_message=True), name)
    headers = {"x-request-id": name}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return responses.EventStream(answer, _chunks(answer, wants_usage), headers)
    return await responses.answered(request, answer, lambda: _whole(answer), headers)


def _opening(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.name,
        "object": kind,
        "created": int(time.time()),
        "model": answer.model.name,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return usage(answer.prompt_tokens, answer.written_tokens, answer.reused_tokens)


def _whole(answer: Answer) -> dict[str, Any]:
    replies = answer.questions[0].replies
    return {
        **_opening(answer, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": _log_probs(answer, reply, 0),
                "finish_reason": finish_reason(reply),
            }
            for index, reply in enumerate(replies)
        ],
        "usage": _usage(answer),
    }


def _log_probs(answer: Answer, reply: Reply, start: int) -> dict[str, Any] | None:
    if not answer.questions[0].request.settings.wants_log_probs:
        return None
    found = shown_log_probs(answer.model, reply, start)
    return {"content": chat_log_probs(answer.model.tokenizer, found), "refusal": None}


async def _chunks(answer: Answer, wants_usage: bool) -> AsyncIterator[list[dict[str, Any]]]:
    """What comes of each reply as it comes; tokens without text wait for what makes it whole."""
    opening = _opening(answer, "chat.completion.chunk")
    extra = {"usage": None} if wants_usage else {}
    replies = answer.questions[0].replies
    told = [-1] * len(replies)  # tokens whose probabilities were sent; -1 before the first chunk

    def chunk(index: int, delta: dict[str, Any], **rest: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **rest}
        return {**opening, "choices": [choice], **extra}

    def chunks_of(event: TokenEvent) -> Iterator[dict[str, Any]]:
        index, reply = event.sample, replies[event.sample]
        if told[index] < 0:
            told[index] = 0
            yield chunk(index, {"role": "assistant", "content": ""})
        if event.text:
            log_probs = _log_probs(answer, reply, told[index])
            told[index] = len(reply.log_probs)
            yield chunk(index, {"content": event.text}, logprobs=log_probs)
        if event.finish is not None:
            log_probs = _log_probs(answer, reply, told[index])
            has_more = log_probs is not None and log_probs["content"]
            yield chunk(
                index,
                {},
                logprobs=log_probs if has_more else None,
                finish_reason=finish_reason(reply),
            )

    async for batch in answer.events():
        if chunks := [each for _, event in batch for each in chunks_of(event)]:
            yield chunks
    if wants_usage:
        yield [{**opening, "choices": [], "usage": _usage(answer)}]
