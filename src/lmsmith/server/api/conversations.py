"""``/api/conversations``: messages and judgements, in the database that training reads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, FiniteFloat
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Conversation, Message, utc
from lmsmith.server.auth import with_store
from lmsmith.server.stream import json_response

router = APIRouter(prefix="/api")

Title = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=1_000_000)]
Id = Annotated[int, Field(ge=1, lt=2**31)]


class TitleBody(BaseModel):
    title: Title = ""


class MessageBody(BaseModel):
    parent: Id | None = None
    role: Literal["system", "user", "assistant"]
    content: Text
    model: Title = ""
    settings: dict[Title, FiniteFloat | Title | bool | None] = Field(
        default_factory=dict, max_length=30
    )
    finish: Annotated[str, Field(max_length=20)] = ""


class RatingBody(BaseModel):
    value: Literal[-1, 1]
    reasons: Annotated[list[Title], Field(max_length=30)] = []
    comment: Text = ""


class BetterBody(BaseModel):
    content: Text


class ComparisonBody(BaseModel):
    left: Id
    right: Id
    verdict: Literal["left", "right", "tie", "both_bad"]


@router.get("/conversations")
async def list_conversations(request: Request, search: str = "") -> Response:
    found = await with_store(request, lambda store, me: store.conversations(me, search))
    return json_response({"conversations": [conversation_json(each) for each in found]})


@router.post("/conversations")
async def create(request: Request, body: TitleBody) -> Response:
    made = await with_store(request, lambda store, me: store.begin(me, body.title))
    return json_response(conversation_json(made))


@router.patch("/conversations/{name}")
async def rename(request: Request, name: str, body: TitleBody) -> Response:
    await with_store(request, lambda store, me: store.rename(me, name, body.title))
    return json_response({"id": name, "title": body.title})


@router.delete("/conversations/{name}")
async def delete(request: Request, name: str) -> Response:
    await with_store(request, lambda store, me: store.delete(me, name))
    return json_response({"deleted": name})


@router.get("/conversations/{name}")
async def show(request: Request, name: str) -> Response:
    """All messages of the tree, each after its parent, with this person's judgements, and the
    answers that are being generated."""
    me = await with_store(request, lambda _, me: me)
    # Before the messages: one that is kept meanwhile is among both, and not among none.
    answers = request.app.state.answers.in_conversation(me, name)
    messages, judged = await with_store(
        request, lambda store, me: (store.tree(me, name), store.judgements(me, name))
    )
    return json_response(
        {
            "id": name,
            "answers": answers,
            "messages": [message_json(each) | judged.get(each.id, {}) for each in messages],
        }
    )


@router.post("/conversations/{name}/messages")
async def add_message(request: Request, name: str, body: MessageBody) -> Response:
    def work(store: Store, me: str) -> Message:
        return store.add_message(
            me,
            name,
            body.parent,
            body.role,
            body.content,
            model=body.model,
            settings=dict(body.settings),
            finish=body.finish,
        )

    return json_response(message_json(await with_store(request, work)))


@router.put("/messages/{number}/rating")
async def rate(request: Request, number: Id, body: RatingBody) -> Response:
    def work(store: Store, me: str) -> object:
        return store.rate(me, number, body.value, body.reasons, body.comment)

    await with_store(request, work)
    return json_response({"message": number, "rating": body.value})


@router.put("/messages/{number}/better")
async def improve(request: Request, number: Id, body: BetterBody) -> Response:
    await with_store(request, lambda store, me: store.improve(me, number, body.content))
    return json_response({"message": number, "better": body.content})


@router.post("/comparisons")
async def compare(request: Request, body: ComparisonBody) -> Response:
    await with_store(
        request, lambda store, me: store.compare(me, body.left, body.right, body.verdict)
    )
    return json_response(body.model_dump())


def iso_time(moment: datetime) -> str:
    """ISO 8601, UTC."""
    return utc(moment).isoformat()


def conversation_json(found: Conversation) -> dict[str, Any]:
    return {
        "id": found.id,
        "title": found.title,
        "created": iso_time(found.created),
        "updated": iso_time(found.updated),
    }


def message_json(found: Message) -> dict[str, Any]:
    return {
        "id": found.id,
        "parent": found.parent_id,
        "role": found.role,
        "content": found.content,
        "model": found.model,
        "settings": found.settings,
        "finish": found.finish,
        "created": iso_time(found.created),
    }
