"""``/api/conversations/…/answers``: a model's answer in a conversation, kept as it is given.

It is written on when its reader hangs up, for a bounded time, in which it can be joined again. It
is in the database before the last event says so. What was written is kept, too, when the reader
stops it or does not come back, or the engine fails.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, FiniteFloat
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.core.errors import UserError
from lmsmith.feedback.conversations import as_turns
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Message
from lmsmith.generation.requests import Reply
from lmsmith.prompts import PromptTooLong, encode_prompt, room_for_reply
from lmsmith.server import asking
from lmsmith.server.answering import Answer, Serving
from lmsmith.server.errors import ApiError, internal, refused
from lmsmith.server.judging import Number, Title, message_json
from lmsmith.server.keeping import in_database, kept
from lmsmith.server.protocol import SamplingBody
from lmsmith.server.responses import EventStream, json_response
from lmsmith.server.served import ServedModel
from lmsmith.server.token_text import finish_reason

log = logging.getLogger("lmsmith.server")
router = APIRouter(prefix="/api")

Name = Annotated[str, Field(max_length=100)]


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
    """An answer on its way into a conversation: written in a task of its own, whoever reads it.

    Args:
        store: keeps it.
        person: whose conversation it is.
        conversation: its id.
        body: what was asked for.
        answer: of the engine, one reply.
        dropped: messages that were left out of the prompt, since they do not fit.
    """

    def __init__(
        self,
        store: Store,
        person: str,
        conversation: str,
        body: AnswerBody,
        answer: Answer,
        dropped: int,
    ) -> None:
        self.person, self.conversation, self.answer = person, conversation, answer
        self._store, self._body, self._dropped = store, body, dropped
        self._last: list[dict[str, Any]] = []
        self._error: ApiError | None = None
        self._is_over = False
        self._news = asyncio.Event()
        self._readers = 0
        self._unread: asyncio.TimerHandle | None = None

    async def write(self) -> None:
        """Take what the engine writes until it ends, and keep it."""
        finish = "stopped"
        try:
            async for batch in self.answer.events():
                deque(batch, maxlen=0)
                self._tell()
            finish = finish_reason(self._reply) or ""
        except Stopped:
            pass
        except ApiError as error:
            self._error, finish = error, "error"
        except Exception:
            log.exception("answer %s failed", self.answer.name)
            self._error, finish = internal(self.answer.name), "error"
        finally:
            self.answer.close()
        try:
            self._last = [{"message": await in_database(self._keep, finish)}]
        except ApiError as error:
            self._error = error
        except Exception:
            log.exception("answer %s is not kept", self.answer.name)
            self._error = internal(self.answer.name)
        self._is_over = True
        if self._unread is not None:
            self._unread.cancel()
        self._tell()

    async def events(self) -> AsyncIterator[list[dict[str, Any]]]:
        """What it is; its text from the beginning, piece by piece; the message, once it is kept.

        Raises:
            ApiError: the engine failed, or the database, in which case there is no message.
        """
        yield [self.shown()]
        read = 0
        while True:
            news, is_over, text = self._news, self._is_over, self._reply.text
            if read < len(text):
                yield [{"delta": text[read:]}]
                read = len(text)
            if is_over:
                break
            await news.wait()
        yield self._last
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Somebody reads it."""
        self._readers += 1
        if self._unread is not None:
            self._unread.cancel()

    def leave(self, unread_seconds: float) -> None:
        """Somebody reads it no more; unless another one does, it ends soon."""
        self._readers -= 1
        if not self._readers and not self._is_over:
            loop = asyncio.get_running_loop()
            self._unread = loop.call_later(unread_seconds, self.answer.end, Stopped())

    def shown(self) -> dict[str, Any]:
        """What it is, for whoever joins it."""
        return {
            "answer": self.answer.name,
            "parent": self._body.parent,
            "model": self.answer.model.name,
            "dropped": self._dropped,
            "note": self._body.note,
        }

    @property
    def _reply(self) -> Reply:
        return self.answer.questions[0].replies[0]

    def _tell(self) -> None:
        """Wake all readers; what comes later wakes them by another event."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _keep(self, finish: str) -> dict[str, Any] | None:
        """Write it down; nothing is written of an answer that was cut off before a word."""
        reply = self._reply
        if not reply.text and finish in ("stopped", "error"):
            return None
        settings = reply_settings(self._body, self.answer.questions[0].request.settings.seed)
        if self._dropped:
            settings["dropped"] = self._dropped
        try:
            made = self._store.say(
                self.person,
                self.conversation,
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


class Talks:
    """The answers that are being written, by name.

    Args:
        unread_seconds: that one is written on while nobody reads it.
    """

    def __init__(self, unread_seconds: float) -> None:
        self._unread_seconds = unread_seconds
        self._all: dict[str, tuple[Talk, asyncio.Task[None]]] = {}

    def begin(self, talk: Talk) -> None:
        """Have it written."""
        task = asyncio.ensure_future(talk.write())
        self._all[talk.answer.name] = talk, task
        task.add_done_callback(lambda _: self._all.pop(talk.answer.name))

    def stream(self, talk: Talk) -> EventStream:
        """Its events from the beginning; who hangs up may ask for them again."""
        reader = _Reader(talk, self._unread_seconds)
        return EventStream(reader, talk.events(), {"x-request-id": talk.answer.name})

    def of(self, person: str, name: str) -> Talk:
        """A person's answer.

        Raises:
            ApiError: 404, it is not being written.
        """
        found = self._all.get(name)
        if found is None or found[0].person != person:
            raise ApiError(404, f"no answer {name} is being written", code="not_found")
        return found[0]

    def in_conversation(self, person: str, conversation: str) -> list[dict[str, Any]]:
        """A person's answers that are being written in a conversation."""
        return [
            talk.shown()
            for talk, _ in self._all.values()
            if (talk.person, talk.conversation) == (person, conversation)
        ]

    async def finish(self) -> None:
        """End all, and keep what was written."""
        running = list(self._all.values())
        for talk, _ in running:
            talk.answer.end(Stopped())
        await asyncio.gather(*(task for _, task in running))


class _Reader:
    """A client that reads an answer; when the last one hangs up, the answer goes on for a while."""

    def __init__(self, talk: Talk, unread_seconds: float) -> None:
        self.name = talk.answer.name
        self._talk, self._unread_seconds = talk, unread_seconds
        talk.join()

    def went_away(self) -> None:
        pass

    def close(self) -> None:
        self._talk.leave(self._unread_seconds)


def reply_settings(body: AnswerBody, seed: int) -> dict[str, Any]:
    """What an answer was drawn with, so that it can be drawn again."""
    given = body.model_dump(include={"temperature", "top_p", "max_tokens"}, exclude_none=True)
    return {**given, "seed": seed, **body.note}


def _prompt(
    model: ServedModel, path: Sequence[Message], longest: int | None
) -> tuple[list[int], int]:
    """A conversation as a prompt with room for a reply, and how many messages were left out.

    The oldest turns are left out first, then messages just before the last one that got no answer.

    Raises:
        ApiError: the template refuses it, or the last message alone is too long.
    """
    limit = model.context - room_for_reply(model.context, longest or model.context)
    system = [message for message in path[:1] if message.role == "system"]
    said = path[len(system) :]
    in_turns = [len(list(each)) for _, each in itertools.groupby(said, lambda each: each.role)]
    problem: UserError | None = None
    for count in (len(said), *range(in_turns[-1] - 1, 0, -1)):
        try:
            turns = as_turns([*system, *said[-count:]])
            prompt = encode_prompt(model.tokenizer, turns, limit)
        except PromptTooLong as error:
            problem = error
        except UserError as error:
            raise refused(error, "messages") from error
        else:
            return prompt.tokens, len(said) - count + sum(in_turns[: prompt.dropped_messages])
    assert problem is not None
    raise refused(problem, "messages", "context_length_exceeded") from problem


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
    tokens, dropped = await asyncio.to_thread(_prompt, model, path, body.max_tokens)
    asked = SamplingBody.model_validate(
        {
            **body.model_dump(include={"temperature", "top_p"}),
            "seed": secrets.randbelow(2**53) if body.seed is None else body.seed,
        }
    )
    settings = asking.sampling(
        asked, model, serving.limits, longest=body.max_tokens, log_probs=None
    )
    made = serving.answer(
        model,
        asking.requests_for([tokens], settings, is_message=True),
        f"answer-{secrets.token_hex(12)}",
    )
    talks: Talks = request.app.state.talks
    talk = Talk(request.app.state.store, person, name, body, made, dropped)
    talks.begin(talk)
    return talks.stream(talk)


@router.get("/answers/{name}")
async def join(request: Request, name: Name) -> Response:
    """The events of an answer that is being written, from its beginning."""
    talks: Talks = request.app.state.talks
    return talks.stream(talks.of(await kept(request, lambda _, me: me), name))


@router.post("/answers/{name}/stop")
async def stop(request: Request, name: Name) -> Response:
    """End an answer; its stream then gives the message as far as it was written."""
    talks: Talks = request.app.state.talks
    talks.of(await kept(request, lambda _, me: me), name).answer.end(Stopped())
    return json_response({"stopped": name})
