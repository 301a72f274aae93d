"""``/api/label``: the labelling queue for labelers, and what has come of it for admins."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.feedback.answers import LONGEST, MOST_RANKED, shown_ranks
from lmsmith.feedback.queue import Held, Queue
from lmsmith.feedback.statistics import statistics_of
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import utc
from lmsmith.server.keeping import kept
from lmsmith.server.responses import json_response
from lmsmith.server.visitors import visitor_of

router = APIRouter(prefix="/api/label")

Kind = Literal["demonstration", "rating", "ranking"]
Text = Annotated[str, Field(max_length=LONGEST)]
Number = Annotated[int, Field(ge=1, lt=2**31)]

LABELERS = ("admin", "labeler")
ADMINS = ("admin",)


class AnswerBody(BaseModel):
    """What of this a kind of task needs, `lmsmith.feedback.answers.checked` says."""

    content: Text = ""
    score: int | None = None
    flags: Annotated[list[str], Field(max_length=30)] = []
    ranks: Annotated[list[int], Field(max_length=MOST_RANKED)] | None = None
    comment: Text = ""

    def said(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class SkipBody(BaseModel):
    reason: Text


class GuidelineBody(BaseModel):
    content: Text


@router.post("/next")
async def next_task(request: Request, kind: Kind | None = None) -> Response:
    """The task this labeler has begun, or a new one; null if there is none left.

    Where there is none, admins are told the command that fills this server's queue.
    """
    model = request.app.state.serving.model(None)

    def work(store: Store, me: str) -> dict[str, Any]:
        queue = Queue(store)
        held = queue.next(me, kind)
        found = {"task": held and _shown(held), "progress": queue.progress(me)}
        if held or visitor_of(request).role not in ADMINS:
            return found
        sample = f"lmsmith feedback sample {shlex.quote(model.source)}"
        return found | {"fill": f"{sample} --prompts prompts.jsonl --answers 4{store.option}"}

    return json_response(await kept(request, work, LABELERS))


@router.get("/progress")
async def progress(request: Request) -> Response:
    """How many of each kind are done, skipped and left."""
    found = await kept(request, lambda store, me: Queue(store).progress(me), LABELERS)
    return json_response({"progress": found})


@router.get("/assignments")
async def list_done(request: Request) -> Response:
    """What this labeler did last."""

    def work(store: Store, me: str) -> list[dict[str, Any]]:
        return [_shown(held) for held in Queue(store).done(me)]

    return json_response({"assignments": await kept(request, work, LABELERS)})


@router.get("/assignments/{number}")
async def show(request: Request, number: Number) -> Response:
    """A task that this labeler has or had."""
    held = await kept(request, lambda store, me: Queue(store).held(me, number), LABELERS)
    return json_response(_shown(held))


@router.put("/assignments/{number}/draft")
async def draft(request: Request, number: Number, body: AnswerBody) -> Response:
    """Keep what is said so far."""
    await kept(request, lambda store, me: Queue(store).draft(me, number, body.said()), LABELERS)
    return json_response({"id": number, "state": "open"})


@router.put("/assignments/{number}")
async def submit(request: Request, number: Number, body: AnswerBody) -> Response:
    """Keep the whole answer; what is done is fixed so."""
    await kept(request, lambda store, me: Queue(store).submit(me, number, body.said()), LABELERS)
    return json_response({"id": number, "state": "done"})


@router.post("/assignments/{number}/skip")
async def skip(request: Request, number: Number, body: SkipBody) -> Response:
    """Give the task to others."""
    await kept(request, lambda store, me: Queue(store).skip(me, number, body.reason), LABELERS)
    return json_response({"id": number, "state": "skipped"})


@router.get("/guidelines/{kind}")
async def guideline(request: Request, kind: Kind) -> Response:
    """What labelers are told; empty where it is the page's own text."""
    found = await kept(request, lambda store, _: Queue(store).guideline(kind), LABELERS)
    return json_response({"kind": kind, "content": found})


@router.put("/guidelines/{kind}")
async def set_guideline(request: Request, kind: Kind, body: GuidelineBody) -> Response:
    """Tell them something else."""
    content = body.content
    await kept(request, lambda store, _: Queue(store).set_guideline(kind, content), ADMINS)
    return json_response({"kind": kind, "content": content})


@router.get("/statistics")
async def statistics(request: Request) -> Response:
    """Progress of all, agreement, leaderboard."""
    return json_response(await kept(request, lambda store, _: statistics_of(store), ADMINS))


def _shown(held: Held) -> dict[str, Any]:
    """A task as its labeler sees it: responses in the order shown, no names of models."""
    assignment, task = held
    answer = dict(assignment.answer)
    if "ranks" in answer:
        answer["ranks"] = shown_ranks(answer["ranks"], assignment.shown)
    return {
        "id": assignment.id,
        "kind": task.kind,
        "state": assignment.state,
        "prompt": task.prompt,
        "responses": [task.responses[place] for place in assignment.shown],
        "answer": answer,
        "lease": utc(assignment.lease).isoformat(),
        "reason": assignment.reason,
    }
