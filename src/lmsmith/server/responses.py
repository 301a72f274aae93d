"""Responses that notice when the client hangs up: event streams, and answers given at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmsmith.server.answering import Answer
from lmsmith.server.errors import ApiError, internal

log = logging.getLogger("lmsmith.server")
Result = TypeVar("Result")


class ClientGone(Exception):
    """The client hung up before it was answered."""


def to_json(value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(value)


def json_response(value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), headers=headers, media_type="application/json")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled when the client hangs up.

    Raises:
        ClientGone: it did.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()


async def answered(
    request: Request,
    answer: Answer,
    show: Callable[[], Mapping[str, Any]],
    headers: Mapping[str, str],
) -> Response:
    """The whole answer as JSON, once it is there; it is given up when the client hangs up."""
    try:
        await while_connected(request, answer.whole())
        return json_response(show(), headers)
    except ClientGone:
        answer.went_away()
        return Response(status_code=499)
    finally:
        answer.close()


class Read(Protocol):
    """What a stream reads: an answer, or a reader of one that goes on without it."""

    @property
    def name(self) -> str: ...

    def went_away(self) -> None:
        """The client hung up."""

    def close(self) -> None:
        """No more is read."""


class EventStream(Response):
    """Server-sent events of an answer.

    What fails before the first event is a plain error with its status; later, an event with an
    ``error``, after which the stream ends without ``[DONE]``.

    Args:
        answer: is closed at the end, however that comes.
        events: objects to send, those of a batch in one piece.
        headers: beside the usual ones.
    """

    def __init__(
        self,
        answer: Read,
        events: AsyncIterator[Sequence[Mapping[str, Any]]],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        watcher = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._answer.went_away()
        finally:
            sending.cancel()
            watcher.cancel()
            self._answer.close()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async for batch in self._events:
                if not begun:
                    begun = True
                    await self._begin(send)
                await _send_events(send, *map(to_json, batch))
            await _send_events(send, b"[DONE]")
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("request %s failed", self._answer.name)
                error = internal(self._answer.name)
            if not begun:
                await error.response()(scope, receive, send)
                return
            await _send_events(send, to_json(error.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)


async def _send_events(send: Send, *events: bytes) -> None:
    body = b"".join([b"data: %b\n\n" % data for data in events])
    await send({"type": "http.response.body", "body": body, "more_body": True})
