"""``/api/conversations/…/answers``: a model's answer in a conversation, saved as it is generated.

It goes on when its reader hangs up, for a bounded time, in which it can be read again. It is in the
database before the last event says so. The text so far is saved, too, when the reader stops it or
does not come back, or the engine fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, FiniteFloat
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store, as_turns
from lmsmith.feedback.tables import Message
from lmsmith.generation.requests import Reply
from lmsmith.prompts import Prompt, PromptTooLong, encode_prompt, room_for_reply
from lmsmith.server.api.conversations import Id, Title, message_writer
from lmsmith.server.auth import in_database, visitor_of, with_store
from lmsmith.server.engine import AsyncEngine, Generation
from lmsmith.server.errors import ApiError, bad_request, internal
from lmsmith.server.models import ServedModel, served_model
from lmsmith.server.requests import (
    ParsedRequest,
    SamplingBody,
    check_characters,
    message_request,
    most_characters,
    new_id,
    sampling_settings,
)
from lmsmith.server.stream import EventStream, finish_reason, json_response
from lmsmith.server.trials import Side, Trials

log = logging.getLogger("lmsmith.server")
router = APIRouter(prefix="/api")

AnswerId = Annotated[str, Field(max_length=100)]


class AnswerBody(BaseModel):
    """The message to answer, the model, and its sampling; ``note`` is saved with the settings.

    ``side`` is one of two places at which a version of the model answers that the server chooses.
    """

    parent: Id
    model: Title | None = None
    side: Side | None = None
    temperature: FiniteFloat | None = Field(None, ge=0, le=100)
    top_p: FiniteFloat | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    seed: int | None = Field(None, ge=0, lt=2**53)
    note: dict[Title, Title] = Field(default_factory=dict, max_length=10)


class Stopped(ApiError):
    """The reader has read enough."""

    def __init__(self) -> None:
        super().__init__(400, "the answer was stopped", code="stopped")


class PendingAnswer:
    """An answer that is being generated, in an asyncio task of its own, for any number of readers.

    Args:
        person: id of the conversation's owner.
        generation: has one reply.
        message_json: writes a message for its readers.
        dropped: the number of messages left out of the prompt, since they do not fit.
        trial: whether some turns of the model are answered by two versions.
        unread_seconds: time that it goes on while nobody reads it.
    """

    def __init__(
        self,
        store: Store,
        person: str,
        conversation: str,
        body: AnswerBody,
        generation: Generation,
        message_json: Callable[[Message], dict[str, Any]],
        dropped: int,
        trial: bool,
        unread_seconds: float,
    ) -> None:
        self.person, self.conversation, self.generation = person, conversation, generation
        self.id = generation.id
        self._store, self._body, self._dropped, self._trial = store, body, dropped, trial
        self._message_json = message_json
        self._last: list[dict[str, Any]] = []
        self._error: ApiError | None = None
        self._is_over = False
        self._news = asyncio.Event()
        self._readers, self._unread_seconds = 0, unread_seconds
        self._unread: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Generate it to its end, and save it."""
        finish = "stopped"
        try:
            async for batch in self.generation.events():
                deque(batch, maxlen=0)
                self._wake_readers()
            finish = finish_reason(self._reply) or ""
        except Stopped:
            pass
        except Exception as error:
            self._error, finish = self._failure(error, "failed"), "error"
        finally:
            self.generation.close()
        try:
            self._last = [{"message": await in_database(self._save, finish)}]
        except Exception as error:
            self._error = self._failure(error, "is not kept")
        self._is_over = True
        if self._unread is not None:
            self._unread.cancel()
        self._wake_readers()

    def _failure(self, error: Exception, problem: str) -> ApiError:
        if isinstance(error, ApiError):
            return error
        log.error("answer %s %s", self.id, problem, exc_info=error)
        return internal(self.id)

    def stream(self) -> EventStream:
        """Its events from the beginning; a client that hung up may read them again."""
        self._readers += 1
        if self._unread is not None:
            self._unread.cancel()
        return EventStream(self, self._events())

    async def _events(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Its description; its text from the beginning, in pieces; the message, once it is saved.

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

    def disconnect(self) -> None:
        """The client hung up; the answer goes on."""

    def close(self) -> None:
        """A reader leaves; without another one, the answer ends after ``unread_seconds``."""
        self._readers -= 1
        if not self._readers and not self._is_over:
            loop = asyncio.get_running_loop()
            self._unread = loop.call_later(self._unread_seconds, self.generation.end, Stopped())

    def shown(self) -> dict[str, Any]:
        """Its description, for every reader."""
        side = {"side": self._body.side} if self._body.side else {}
        return {
            "answer": self.id,
            "parent": self._body.parent,
            "model": self.generation.model.name,
            "dropped": self._dropped,
            "trial": self._trial,
            "note": self._body.note,
            **side,
        }

    @property
    def _reply(self) -> Reply:
        return self.generation.replies[0]

    def _wake_readers(self) -> None:
        """Later news wake them by another event."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _save(self, finish: str) -> dict[str, Any] | None:
        """Add the message, but none for an answer that was cut off before a word."""
        reply = self._reply
        if not reply.text and finish in ("stopped", "error"):
            return None
        sampling = self._body.model_dump(
            include={"temperature", "top_p", "max_tokens"}, exclude_none=True
        )
        seed = self.generation.prompts[0].request.settings.seed
        settings = {**sampling, "seed": seed, **self._body.note}
        if self._dropped:
            settings["dropped"] = self._dropped
        try:
            message = self._store.add_message(
                self.person,
                self.conversation,
                self._body.parent,
                "assistant",
                reply.text,
                model=self.generation.model.recorded,
                settings=settings,
                finish=finish,
            )
        except UserError as error:
            log.warning("answer %s is not kept: %s", self.id, error.problem)
            return None
        return self._message_json(message)


class PendingAnswers:
    """The answers that are being generated, by id."""

    def __init__(self) -> None:
        self._all: dict[str, tuple[PendingAnswer, asyncio.Task[None]]] = {}

    def start(self, answer: PendingAnswer) -> None:
        task = asyncio.ensure_future(answer.run())
        self._all[answer.id] = answer, task
        task.add_done_callback(lambda _: self._all.pop(answer.id))

    def find(self, person: str, answer: str) -> PendingAnswer:
        """A person's answer; raises ApiError (404) if it is not being generated."""
        found = self._all.get(answer)
        if found is None or found[0].person != person:
            raise ApiError(404, f"no answer {answer} is being written", code="not_found")
        return found[0]

    def in_conversation(self, person: str, conversation: str) -> list[dict[str, Any]]:
        return [
            answer.shown()
            for answer, _ in list(self._all.values())  # a thread asks, too
            if (answer.person, answer.conversation) == (person, conversation)
        ]

    async def finish(self) -> None:
        """End all, and save what was generated."""
        running = list(self._all.values())
        for answer, _ in running:
            answer.generation.end(Stopped())
        await asyncio.gather(*(task for _, task in running))


def _prompt(
    model: ServedModel, path: Sequence[Message], max_tokens: int | None
) -> tuple[list[int], int]:
    """A conversation as a prompt with room for a reply, and how many messages were left out.

    The oldest turns are left out first, then messages just before the last one that got no answer.

    Raises:
        ApiError: the template refuses it, or the last message alone is too long.
    """
    limit = model.context - room_for_reply(model.context, max_tokens or model.context)
    system = [message for message in path[:1] if message.role == "system"]
    rest = _last_of(model, path[len(system) :], system)
    too_long = len(path) - len(system) - len(rest)
    in_turns = [len(list(each)) for _, each in itertools.groupby(rest, lambda each: each.role)]

    def of_last(count: int) -> Prompt:
        return encode_prompt(model.tokenizer, as_turns([*system, *rest[-count:]]), limit)

    try:
        count, prompt = _most_that_fit(of_last, len(rest), in_turns[-1])
    except PromptTooLong as error:
        raise bad_request(error, "messages", "context_length_exceeded") from error
    except UserError as error:
        raise bad_request(error, "messages") from error
    dropped = len(rest) - count + sum(in_turns[: prompt.dropped_messages])
    return prompt.tokens, too_long + dropped


def _most_that_fit(
    of_last: Callable[[int], Prompt], everything: int, last_turn: int
) -> tuple[int, Prompt]:
    """How many messages fit, and their prompt: all, or as many as fit of the last turn's.

    Raises:
        PromptTooLong: the last message alone does not.
    """
    with contextlib.suppress(PromptTooLong):
        return everything, of_last(everything)
    fitting, beyond = (1, of_last(1)), last_turn
    while beyond - fitting[0] > 1:  # by halves: a turn may have thousands of messages
        middle = (fitting[0] + beyond) // 2
        try:
            fitting = middle, of_last(middle)
        except PromptTooLong:
            beyond = middle
    return fitting


def _last_of(
    model: ServedModel, messages: Sequence[Message], system: Sequence[Message]
) -> Sequence[Message]:
    """The last messages, as many as could fit by their characters: the rest is not tokenized.

    Raises:
        ApiError: the last message alone, with the system message, is too long.
    """
    count = check_characters(model, [each.content for each in (*system, messages[-1])], "messages")
    first = len(messages) - 1
    while first:
        count += len(messages[first - 1].content)
        if count > most_characters(model):
            break
        first -= 1
    return messages[first:]


@router.post("/conversations/{name}/answers")
async def create(request: Request, name: str, body: AnswerBody) -> Response:
    """Answer a user's message, as events; the answer becomes its child."""
    engine: AsyncEngine = request.app.state.engine
    pending: PendingAnswers = request.app.state.answers

    def path_to(store: Store, me: str) -> tuple[str, list[Message]]:
        path = store.path(me, body.parent)
        store.check_room(me, name, 1 + len(pending.in_conversation(me, name)))
        return me, path

    person, path = await with_store(request, path_to)
    if path[-1].conversation_id != name:
        raise ApiError(404, f"message {body.parent} is in another conversation", code="not_found")
    if path[-1].role != "user":
        raise ApiError(400, f"message {body.parent} is no user's message", param="parent")
    if body.side is None:
        model = served_model(engine.models, body.model)
    else:
        trials: Trials = request.app.state.trials
        model = await trials.on_side(person, body.parent, body.model, body.side)
    work = partial(_prompt, model, path, body.max_tokens)
    size = min(most_characters(model), sum(len(each.content) for each in path))
    tokens, dropped = await engine.texts.run(visitor_of(request).cache_salt, size, work)
    seed = secrets.randbelow(2**53) if body.seed is None else body.seed
    sampling = SamplingBody.model_validate(
        {"temperature": body.temperature, "top_p": body.top_p, "seed": seed}
    )
    settings = sampling_settings(sampling, model, engine.limits, max_new_tokens=body.max_tokens)
    generation = engine.submit(
        ParsedRequest(
            id=new_id("answer"),
            model=model,
            prompts=[message_request(tokens, settings)],
            cache_salt=visitor_of(request).cache_salt,
        )
    )
    answer = PendingAnswer(
        request.app.state.store,
        person,
        name,
        body,
        generation,
        message_writer(request),
        dropped,
        model.name in engine.candidates,
        engine.limits.unread_seconds,
    )
    pending.start(answer)
    return answer.stream()


@router.get("/answers/{name}")
async def read(request: Request, name: AnswerId) -> Response:
    """The events of an answer that is being generated, from its beginning."""
    return (await _find(request, name)).stream()


@router.post("/answers/{name}/stop")
async def stop(request: Request, name: AnswerId) -> Response:
    """End an answer; its stream then gives the message as far as it was generated."""
    (await _find(request, name)).generation.end(Stopped())
    return json_response({"stopped": name})


async def _find(request: Request, name: str) -> PendingAnswer:
    answers: PendingAnswers = request.app.state.answers
    return answers.find(await with_store(request, lambda _, me: me), name)
