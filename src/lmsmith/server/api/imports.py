"""``/api/imports``: conversations of files that the page reads, in any known format."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.core.errors import UserError
from lmsmith.corpus.formats import messages_of
from lmsmith.feedback.imports import ImportedMessage as Said
from lmsmith.feedback.imports import Tree, begun_by_user, check_tree, in_turn, origin_of
from lmsmith.feedback.imports import import_trees as bring
from lmsmith.server.api.conversations import (
    MessageBody,
    RatingBody,
    Text,
    Title,
    conversation_json,
)
from lmsmith.server.auth import with_store
from lmsmith.server.errors import bad_request
from lmsmith.server.stream import json_response

router = APIRouter(prefix="/api")

MAX_TITLE = 60


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
    """Add the conversations that are not there yet: the new ones, how many are known, and how much
    of what was left out. All of the rows, or, where anything is wrong with one, none."""
    left_out = Counter[str]()
    try:
        found = await asyncio.to_thread(_read_all, body, left_out)
    except UserError as error:
        raise bad_request(error, "rows") from error

    def trees(me: str) -> list[Tree]:
        return [Tree(title, said, f"{origin_of(me, said)}.1") for title, said in found]

    made = await with_store(request, lambda store, me: bring(store, me, trees(me)))
    return json_response(
        {
            "conversations": [conversation_json(each) for each in made],
            "known": len(found) - len(made),
            "left_out": {what: count for what, count in left_out.items() if count},
        }
    )


def _read_all(body: ImportBody, left_out: Counter[str]) -> list[tuple[str, list[Said]]]:
    """Title and messages of each row in which somebody says anything."""
    places = (f"{body.name}, conversation {number}" for number in itertools.count(body.first))
    found = (_read(row, where, left_out) for row, where in zip(body.rows, places, strict=False))
    return [(title, messages) for title, messages in found if messages]


def _read(row: dict[str, Any], where: str, left_out: Counter[str]) -> tuple[str, list[Said]]:
    """Title and messages of a row; no messages if nobody says anything in it."""
    messages = row.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(first, dict) and "id" in first:
        said = _tree(row, where)
    else:
        said = in_turn(begun_by_user(messages_of(row, where, left_out), left_out))
    check_tree(said, where)
    title = row.get("title")
    if not isinstance(title, str) or not title.strip():
        title = next((each.content for each in said if each.role == "user"), "")
        title = title.strip().partition("\n")[0]
        if len(title) > MAX_TITLE:
            title = f"{title[: MAX_TITLE - 2].rstrip()}…"
    return title[:300], said


def _tree(row: dict[str, Any], where: str) -> list[Said]:
    try:
        tree = FileTree.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {place}: {first['msg']}") from error
    places: dict[int | None, int | None] = {None: None}
    for number, each in enumerate(tree.messages):
        if each.parent not in places:
            raise UserError(f"{where}: message {each.id} comes before what it answers")
        places[each.id] = number
    return [_said(each, places[each.parent]) for each in tree.messages]


def _said(message: FileMessage, parent: int | None) -> Said:
    about = message.model_dump(include={"model", "settings", "finish"})
    rating = None if message.rating is None else message.rating.model_dump()
    return Said(parent, message.role, message.content, about, rating, message.better)
