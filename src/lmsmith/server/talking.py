"""``/api/conversations/…/answers``: a model's answer in a conversation, kept as it is given.

It is in the database before the last event says so. What was written is kept, too, when the reader
stops it, hangs up, or the engine fails.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, FiniteFloat
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store
from lmsmith.server import asking
from lmsmith.server.answering import Answer, Serving
from lmsmith.server.errors import ApiError
from lmsmith.server.judging import Number, Title, message_json
from lmsmith.server.keeping import kept
from lmsmith.server.protocol import ChatBody
from lmsmith.server.responses import EventStream, json_response
from lmsmith.server.token_text import finish_reason

log = logging.getLogger("lmsmith.server")
router = APIRouter(prefix="/api")


class AnswerBody(BaseModel):
    """Which message is answered, by whom and how; ``note`` is kept beside the settings."""

    parent: Number
    model: Title | None = None
    temperature: FiniteFloat | None = Field(None, ge=0, le=100)
    top_p: FiniteFloat | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    seed: int | None = Field(None, ge=0, lt=2**53)
    note: dict[Title, Title] = Field(default_factory=dict, max_length=10)


class Stopped(ApiError):
    """The reader has read enough."""

    def __init__(self) -> None:
        super().__init__(400, "the answer was stopped", code="stopped")


class Talk:
    """An answer on its way into a conversation.

    Args:
        store: keeps it.
        person: whose conversation it is.
        conversation: its id.
        body: what was asked for.
        answer: of the engine, one reply.
    """

    def __init__(
        self, store: Store, person: str, conversation: str, body: AnswerBody, answer: Answer
    ) -> None:
        self.person, self.answer = person, answer
        self.is_over = False
        self._store, self._conversation, self._body = store, conversation, body

    async def events(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Its name; its text piece by piece; the message, once it is kept."""
        yield [{"answer": self.answer.name}]
        finish = "stopped"
        try:
            async for batch in self.answer.events():
                if text := "".join(event.text for _, event in batch):
                    yield [{"delta": text}]
            finish = finish_reason(self.answer.questions[0].replies[0]) or ""
        except Stopped:
            pass
        except ApiError:
            yield [{"message": await asyncio.to_thread(self.keep, "error")}]
            raise
        yield [{"message": await asyncio.to_thread(self.keep, finish)}]

    def keep(self, finish: str) -> dict[str, Any] | None:
        """Write it down, once; nothing is written of an answer that was cut off before a word."""
        reply = self.answer.questions[0].replies[0]
        if self.is_over or (not reply.text and finish in ("stopped", "error")):
            return None
        self.is_over = True
        settings = reply_settings(self._body, self.answer.questions[0].request.settings.seed)
        try:
            made = self._store.say(
                self.person,
                self._conversation,
                self._body.parent,
                "assistant",
                reply.text,
                model=self.answer.model.name,
                settings=settings,
                finish=finish,
            )
        except UserError as error:
            log.warning("answer %s is not kept: %s", self.answer.name, error.problem)
            return None
        return message_json(made)


def reply_settings(body: AnswerBody, seed: int) -> dict[str, Any]:
    """What an answer was drawn with, so that it can be drawn again."""
    given = body.model_dump(include={"temperature", "top_p", "max_tokens"}, exclude_none=True)
    return {**given, "seed": seed, **body.note}


class _KeptStream(EventStream):
    """Keeps what was written also when the client hangs up."""

    def __init__(self, talk: Talk, talks: dict[str, Talk]) -> None:
        super().__init__(talk.answer, talk.events(), {"x-request-id": talk.answer.name})
        self._talk, self._talks = talk, talks
        talks[talk.answer.name] = talk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            del self._talks[self._talk.answer.name]
            self._talk.keep("stopped")


@router.post("/conversations/{name}/answers")
async def answer(request: Request, name: str, body: AnswerBody) -> Response:
    """Answer a user's message, as events; the answer becomes its child."""
    serving: Serving = request.app.state.serving
    person, path = await kept(request, lambda store, me: (me, store.path(me, body.parent)))
    if path[-1].conversation_id != name:
        raise ApiError(404, f"message {body.parent} is in another conversation", code="not_found")
    if path[-1].role != "user":
        raise ApiError(400, f"message {body.parent} is no user's message", param="parent")
    model = serving.model(body.model)
    messages = [{"role": each.role, "content": each.content} for each in path]
    tokens = await asyncio.to_thread(asking.chat_tokens, model, messages)
    asked = ChatBody.model_validate(
        {
            **body.model_dump(include={"temperature", "top_p"}),
            "messages": messages,
            "seed": secrets.randbelow(2**53) if body.seed is None else body.seed,
        }
    )
    settings = asking.sampling(
        asked, model, serving.limits, longest=body.max_tokens, log_probs=None
    )
    made = serving.answer(
        model, asking.requests_for([tokens], settings), f"answer-{secrets.token_hex(12)}"
    )
    return _KeptStream(
        Talk(request.app.state.store, person, name, body, made), request.app.state.talks
    )


@router.post("/answers/{name}/stop")
async def stop(request: Request, name: Annotated[str, Field(max_length=100)]) -> Response:
    """End an answer; its stream then gives the message as far as it was written."""
    person = await kept(request, lambda _, me: me)
    talks: dict[str, Talk] = request.app.state.talks
    talk = talks.get(name)
    if talk is None or talk.person != person:
        raise ApiError(404, f"no answer {name} is being written", code="not_found")
    talk.answer.end(Stopped())
    return json_response({"stopped": name})
