"""``/api/conversations``: messages and judgements, in the database that training reads.

``/api/imports`` adds conversations of files that the page reads, in any known format.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.catalogue.versions import split_version
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import in_one_line
from lmsmith.corpus.formats import messages_of
from lmsmith.feedback.imports import begun_by_user
from lmsmith.feedback.store import MOST_MESSAGES, TOO_LARGE, Store
from lmsmith.feedback.tables import Conversation, Message, utc
from lmsmith.feedback.trees import (
    ImportedMessage,
    Tree,
    check_tree,
    import_trees,
    in_turn,
    origin_of,
)
from lmsmith.server.auth import visitor_of, with_store
from lmsmith.server.errors import bad_request
from lmsmith.server.models import shown_name
from lmsmith.server.stream import json_response
from lmsmith.server.trials import Trials

router = APIRouter(prefix="/api")

Title = Annotated[str, Field(max_length=300), AfterValidator(in_one_line)]
Text = Annotated[str, Field(max_length=1_000_000)]
Id = Annotated[int, Field(ge=1, lt=2**31)]

MAX_TITLE = 60


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
    # Before the messages: an answer saved meanwhile is then in both lists, not in neither.
    answers = request.app.state.answers.in_conversation(me, name)
    messages, judged = await with_store(
        request, lambda store, me: (store.tree(me, name), store.judgements(me, name))
    )
    message_json = message_writer(request)
    shown = [message_json(each) | judged.get(each.id, {}) for each in messages]
    return json_response({"id": name, "answers": answers, "messages": shown})


@router.post("/conversations/{name}/messages")
async def add_message(request: Request, name: str, body: MessageBody) -> Response:
    given = body.model_dump()
    given["model"] = split_version(body.model)[0]  # nobody votes with words of their own

    def add(store: Store, me: str) -> Message:
        return store.add_message(me, name, **given)

    return json_response(message_writer(request)(await with_store(request, add)))


@router.put("/messages/{number}/rating")
async def rate(request: Request, number: Id, body: RatingBody) -> Response:
    given = body.model_dump()
    await with_store(request, lambda store, me: store.rate(me, number, **given))
    return json_response({"message": number, "rating": body.value})


@router.put("/messages/{number}/better")
async def improve(request: Request, number: Id, body: BetterBody) -> Response:
    await with_store(request, lambda store, me: store.improve(me, number, body.content))
    return json_response({"message": number, "better": body.content})


@router.post("/comparisons")
async def compare(request: Request, body: ComparisonBody) -> Response:
    """Keep a comparison. ``trial`` is there for two versions of a model: ``counted`` as a vote,
    ``decided`` if it was the last one, ``ended`` if it is kept as a judgement alone."""
    given = body.model_dump()
    trials: Trials = request.app.state.trials
    await with_store(request, lambda store, me: store.compare(me, **given))
    counted = await trials.compared(body.left, body.right)
    return json_response(given | ({"trial": counted} if counted else {}))


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


def message_writer(request: Request) -> Callable[[Message], dict[str, Any]]:
    """Writes messages for a visitor: admins alone see which version of its model wrote one."""
    models, is_admin = request.app.state.engine.models, visitor_of(request).role == "admin"

    def message_json(found: Message) -> dict[str, Any]:
        shown = {
            "id": found.id,
            "parent": found.parent_id,
            "role": found.role,
            "content": found.content,
            "model": shown_name(models, found.model),
            "settings": found.settings,
            "finish": found.finish,
            "created": iso_time(found.created),
        }
        has_version = is_admin and split_version(found.model)[1] is not None
        return shown | ({"version": found.model} if has_version else {})

    return message_json


# Imports


class FileMessage(MessageBody):
    """A message as the page exports it; numbers are those of the file."""

    id: int
    rating: RatingBody | None = None
    better: Text | None = None


class FileTree(BaseModel):
    """A conversation as the page exports it."""

    messages: list[FileMessage]


class ImportBody(BaseModel):
    """Rows of a file; ``first`` is the number of the first one."""

    name: Title
    first: Annotated[int, Field(ge=1)] = 1
    rows: Annotated[list[dict[str, Any]], Field(max_length=10_000)]


@router.post("/imports")
async def import_rows(request: Request, body: ImportBody) -> Response:
    """Add the conversations that are new, or none if any row is wrong.

    The reply has them, the number already known, and counts of what was left out.
    """
    left_out = Counter[str]()
    try:
        found = await asyncio.to_thread(_read_all, body, left_out)
    except UserError as error:
        raise bad_request(error, "rows") from error

    def trees(me: str) -> list[Tree]:
        return [Tree(title, messages, f"{origin_of(me, messages)}.1") for title, messages in found]

    made = await with_store(request, lambda store, me: import_trees(store, me, trees(me)))
    return json_response(
        {
            "conversations": [conversation_json(each) for each in made],
            "known": len(found) - len(made),
            "left_out": {what: count for what, count in left_out.items() if count},
        }
    )


def _read_all(body: ImportBody, left_out: Counter[str]) -> list[tuple[str, list[ImportedMessage]]]:
    """Title and messages of each row in which somebody says anything."""
    places = (f"{body.name}, conversation {number}" for number in itertools.count(body.first))
    found = (_read(row, where, left_out) for row, where in zip(body.rows, places, strict=False))
    return [(title, messages) for title, messages in found if messages]


def _read(
    row: dict[str, Any], where: str, left_out: Counter[str]
) -> tuple[str, list[ImportedMessage]]:
    """Title and messages of a row."""
    messages = row.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(first, dict) and "id" in first:
        found = _tree(row, where)
    else:
        found = in_turn(begun_by_user(messages_of(row, where, left_out), left_out))
    check_tree(found, where)
    title = row.get("title")
    if not isinstance(title, str) or not title.strip():
        title = next((each.content for each in found if each.role == "user"), "")
        title = title.strip().partition("\n")[0]
        if len(title) > MAX_TITLE:
            title = f"{title[: MAX_TITLE - 2].rstrip()}…"
    return in_one_line(title[:300]), found


def _tree(row: dict[str, Any], where: str) -> list[ImportedMessage]:
    if len(row["messages"]) > MOST_MESSAGES:  # before each is read
        raise UserError(f"{where}: {len(row['messages']):,} messages: {TOO_LARGE}")
    try:
        tree = FileTree.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {place}: {first['msg']}") from error
    places: dict[int | None, int | None] = {None: None}
    found = []
    for number, each in enumerate(tree.messages):
        if each.parent not in places:
            raise UserError(f"{where}: message {each.id} comes before what it answers")
        places[each.id] = number
        about = each.model_dump(include={"settings", "finish"})
        about["model"] = split_version(each.model)[0]
        rating = None if each.rating is None else each.rating.model_dump()
        parent = places[each.parent]
        found.append(ImportedMessage(parent, each.role, each.content, about, rating, each.better))
    return found
