"""Which turns of a conversation show two versions side by side, and a person's choice about it."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.feedback.store import NotThere, Store
from lmsmith.server.api.conversations import Id
from lmsmith.server.auth import with_store
from lmsmith.server.stream import json_response
from lmsmith.server.trials import Trials

router = APIRouter(prefix="/api")


class SettingsBody(BaseModel):
    compares: bool


@router.get("/conversations/{conversation}/messages/{message}/pair")
async def pair(
    request: Request, conversation: str, message: Id, model: str | None = None
) -> Response:
    """Whether this message is answered by two versions, which are then asked for by ``side``."""

    def mine(store: Store, me: str) -> str:
        found = store.path(me, message)[-1]
        if found.conversation_id != conversation:
            raise NotThere(f"message {message} is in another conversation")
        return me

    person = await with_store(request, mine)
    trials: Trials = request.app.state.trials
    return json_response({"pair": await trials.shows_pair(person, message, model)})


@router.get("/me/settings")
async def settings(request: Request) -> Response:
    """``compares``: whether this person is shown two versions."""
    compares = await with_store(request, lambda store, me: store.compares(me))
    return json_response({"compares": compares})


@router.put("/me/settings")
async def set_settings(request: Request, body: SettingsBody) -> Response:
    """Opt in or out."""
    await with_store(request, lambda store, me: store.set_compares(me, body.compares))
    return json_response({"compares": body.compares})
