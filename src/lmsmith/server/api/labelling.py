"""``/api/label``: the labelling queue for labelers, and its statistics for admins."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.feedback.answers import LONGEST, MOST_RANKED
from lmsmith.feedback.queue import AssignedTask, Queue
from lmsmith.feedback.statistics import statistics_of
from lmsmith.feedback.store import Store
from lmsmith.server.api.conversations import Id, iso_time
from lmsmith.server.auth import visitor_of, with_store
from lmsmith.server.models import served_model
from lmsmith.server.stream import json_response
from lmsmith.server.trials import Trials

router = APIRouter(prefix="/api/label")

Kind = Literal["demonstration", "rating", "ranking"]
Text = Annotated[str, Field(max_length=LONGEST)]

LABELERS, ADMINS = ("admin", "labeler"), ("admin",)
Result = TypeVar("Result")


class LabelBody(BaseModel):
    """A label; `lmsmith.feedback.answers.checked` says which fields a kind of task needs."""

    content: Text = ""
    score: int | None = None
    flags: Annotated[list[str], Field(max_length=30)] = []
    ranks: Annotated[list[int], Field(max_length=MOST_RANKED)] | None = None
    comment: Text = ""


class SkipBody(BaseModel):
    reason: Text


class GuidelineBody(BaseModel):
    content: Text


@router.post("/next")
async def next_task(request: Request, kind: Kind | None = None) -> Response:
    """The task this labeler has begun, or a new one; null if there is none left, with the command
    that fills the queue, for admins."""
    model = served_model(request.app.state.engine.models, None)

    def work(store: Store, me: str) -> dict[str, Any]:
        queue = Queue(store)
        held = queue.next(me, kind)
        found = {"task": held and _shown(held), "progress": queue.progress(me)}
        if held or visitor_of(request).role not in ADMINS:
            return found
        sample = f"lmsmith feedback sample {shlex.quote(model.source)}"
        return found | {"fill": f"{sample} --prompts prompts.jsonl --answers 4{store.option}"}

    return json_response(await with_store(request, work, LABELERS))


@router.get("/progress")
async def progress(request: Request) -> Response:
    """How many of each kind are done, skipped and left."""
    found = await _with_queue(request, lambda queue, me: queue.progress(me))
    return json_response({"progress": found})


@router.get("/assignments")
async def list_done(request: Request) -> Response:
    """This labeler's last tasks."""
    done = await _with_queue(request, lambda queue, me: queue.done(me))
    return json_response({"assignments": [_shown(held) for held in done]})


@router.get("/assignments/{number}")
async def show(request: Request, number: Id) -> Response:
    """A task that this labeler has or had."""
    held = await _with_queue(request, lambda queue, me: queue.assigned(me, number))
    return json_response(_shown(held))


@router.put("/assignments/{number}/draft")
async def draft(request: Request, number: Id, body: LabelBody) -> Response:
    """Save an unfinished label."""
    label = body.model_dump(exclude_none=True)
    await _with_queue(request, lambda queue, me: queue.draft(me, number, label))
    return json_response({"id": number, "state": "open"})


@router.put("/assignments/{number}")
async def submit(request: Request, number: Id, body: LabelBody) -> Response:
    """Save the whole label, or correct it."""
    label = body.model_dump(exclude_none=True)
    await _with_queue(request, lambda queue, me: queue.submit(me, number, label))
    if body.ranks is not None:
        trials: Trials = request.app.state.trials
        await trials.ranked()
    return json_response({"id": number, "state": "done"})


@router.post("/assignments/{number}/skip")
async def skip(request: Request, number: Id, body: SkipBody) -> Response:
    """Leave the task to others."""
    await _with_queue(request, lambda queue, me: queue.skip(me, number, body.reason))
    return json_response({"id": number, "state": "skipped"})


@router.get("/guidelines/{kind}")
async def guideline(request: Request, kind: Kind) -> Response:
    """The text for labelers; empty where it is the page's own."""
    found = await _with_queue(request, lambda queue, _: queue.guideline(kind))
    return json_response({"kind": kind, "content": found})


@router.put("/guidelines/{kind}")
async def set_guideline(request: Request, kind: Kind, body: GuidelineBody) -> Response:
    """Replace the guideline."""
    await _with_queue(request, lambda queue, _: queue.set_guideline(kind, body.content), ADMINS)
    return json_response({"kind": kind, "content": body.content})


@router.get("/statistics")
async def statistics(request: Request) -> Response:
    """Progress of all, agreement, leaderboard."""
    return json_response(await with_store(request, lambda store, _: statistics_of(store), ADMINS))


async def _with_queue(
    request: Request, work: Callable[[Queue, str], Result], roles: tuple[str, ...] = LABELERS
) -> Result:
    return await with_store(request, lambda store, me: work(Queue(store), me), roles)


def _shown(held: AssignedTask) -> dict[str, Any]:
    """A task as its labeler sees it: responses in the order shown, no names of models."""
    assignment, task = held
    answer = dict(assignment.answer)
    if "ranks" in answer:
        answer["ranks"] = [answer["ranks"][place] for place in assignment.shown]
    return {
        "id": assignment.id,
        "kind": task.kind,
        "state": assignment.state,
        "prompt": task.prompt,
        "responses": [task.responses[place] for place in assignment.shown],
        "answer": answer,
        "lease": iso_time(assignment.lease),
        "reason": assignment.reason,
    }
