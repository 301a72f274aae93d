"""The response: events as they come or JSON at the end, cancelled when the client hangs up."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmsmith.generation.requests import Reply, TokenEvent
from lmsmith.server.engine import Generation
from lmsmith.server.errors import ApiError, internal
from lmsmith.server.requests import SamplingBody
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.token_bytes import BOUNDARY

log = logging.getLogger("lmsmith.server")
Result = TypeVar("Result")


class ReplyFormat(ABC):
    """Writes the replies of a generation as a route's JSON, whole or in chunks."""

    object: str
    chunk_object: str

    def __init__(self, generation: Generation) -> None:
        self.generation, self._created = generation, int(time.time())

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """The finished replies."""

    @abstractmethod
    def new_choices(self, prompt: int, event: TokenEvent) -> Iterator[dict[str, Any]]:
        """The parts that a token adds; none while its text is not whole."""

    def usage(self) -> dict[str, Any]:
        found = usage(*self.generation.token_counts)
        return found | ({"estimated": True} if self.generation.counts_are_estimated else {})

    def whole(self) -> dict[str, Any]:
        return self._head(self.object) | {"choices": self.choices(), "usage": self.usage()}

    async def chunks(self, wants_usage: bool) -> AsyncIterator[list[dict[str, Any]]]:
        """The parts of each batch of events."""
        head, extra = self._head(self.chunk_object), {"usage": None} if wants_usage else {}
        async for batch in self.generation.events():
            choices = [new for event in batch for new in self.new_choices(*event)]
            if choices:
                yield [{**head, "choices": [choice], **extra} for choice in choices]
        if wants_usage:
            yield [{**head, "choices": [], "usage": self.usage()}]

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.generation.id, "object": kind, "created": self._created}
        return head | {"model": self.generation.model.name}


def usage(prompt: int, new: int, cached: int) -> dict[str, Any]:
    """Usage, given the numbers of tokens of prompts, of replies, and of cached prompts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason(reply: Reply) -> str | None:
    """``stop`` or ``length``; the API has no other."""
    return None if reply.finish is None else "stop" if reply.finish == "stop" else "length"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; ``bytes:\\xe4\\xbd`` where that is no whole character."""
    if token in tokenizer.control_tokens:
        return str(tokenizer.control_tokens[token])
    if token >= tokenizer.vocabulary_size:
        return ""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Texts of successive tokens, as a reader sees them.

    Where only several tokens together make whole characters, the first of them shows these; the
    others, and bytes that make no character, are as in `token_text`.
    """
    texts = [token_text(tokenizer, token) for token in tokens]
    begun, state = 0, BOUNDARY
    for place, token in enumerate(tokens):
        if state == BOUNDARY:
            begun = place
        state = int(tokenizer.utf8.next_sv[state, token])
        if state == BOUNDARY and begun < place:
            joined = b"".join(map(tokenizer.token_bytes, tokens[begun : place + 1]))
            try:
                texts[begun] = joined.decode()
            except UnicodeDecodeError:
                continue
    return texts


# Responses


def encoded(value: Mapping[str, Any]) -> bytes:
    """JSON without the characters that end a line for some clients, such as httpx, which would
    divide an event there."""
    content = msgspec.json.encode(value)
    for character, escaped in _LINE_ENDS.items():
        content = content.replace(character, escaped)
    return content


_LINE_ENDS = {chr(code).encode(): b"\\u%04x" % code for code in (0x85, 0x2028, 0x2029)}


def json_response(
    value: Mapping[str, Any], headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(encoded(value), status, headers=headers, media_type="application/json")


async def respond(
    request: Request, generation: Generation, shown: ReplyFormat, body: SamplingBody
) -> Response:
    """Events if the body wants a stream, else the whole reply as JSON once it is there."""
    headers = {"x-request-id": generation.id}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(generation, shown.chunks(wants_usage))
    try:
        await while_connected(request.receive, generation.finish())
        return json_response(shown.whole(), headers)
    except ClientGone:
        generation.disconnect()
        return Response(status_code=499)
    finally:
        generation.close()


class ClientGone(Exception):
    """The client hung up before it got a response."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``; it is cancelled, and ClientGone raised, if the client hangs up."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()


class Source(Protocol):
    """A generation, or an answer that goes on without the reader of its stream."""

    id: str

    def disconnect(self) -> None:
        """The client hung up."""

    def close(self) -> None:
        """No more is read."""


class EventStream(Response):
    """Server-sent events: objects, those of a batch in one piece.

    A failure before the first event is a plain error with its status; later, an event with an
    ``error``, after which the stream ends without ``[DONE]``. The source is always closed.
    """

    def __init__(self, source: Source, events: AsyncIterator[Sequence[Mapping[str, Any]]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(
            headers={"x-request-id": source.id, **headers}, media_type="text/event-stream"
        )
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._source, self._events = source, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(scope, receive, send))
        except ClientGone:
            self._source.disconnect()
        finally:
            self._source.close()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async for batch in self._events:
                if not begun:
                    begun, head = True, {"status": 200, "headers": self.raw_headers}
                    await send({"type": "http.response.start", **head})
                await _send_events(send, *map(encoded, batch))
            await _send_events(send, b"[DONE]")
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("request %s failed", self._source.id)
                error = internal(self._source.id)
            if not begun:
                await error.response()(scope, receive, send)
                return
            await _send_events(send, encoded(error.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_events(send: Send, *events: bytes) -> None:
    body = b"".join([b"data: %b\n\n" % data for data in events])
    await send({"type": "http.response.body", "body": body, "more_body": True})
