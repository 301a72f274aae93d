"""``/api/versions``: versions of models for admins, their improvement, promotion and trial."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field, FiniteFloat
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.catalogue import versions
from lmsmith.catalogue.registry import can_be_named
from lmsmith.core.errors import UserError
from lmsmith.feedback.judged import judged_of
from lmsmith.server.api.conversations import Title, iso_time
from lmsmith.server.auth import in_database, require_role, with_store
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError
from lmsmith.server.following import Following
from lmsmith.server.improvements import Improvements
from lmsmith.server.models import ServedModel
from lmsmith.server.pacing import small_portions
from lmsmith.server.stream import json_response
from lmsmith.server.trials import votes_json

router = APIRouter(prefix="/api/versions")
Result = TypeVar("Result")

ADMINS = ("admin",)
MOST_LABELLED = 1000


class ImproveBody(BaseModel):
    """``force`` goes on with few judgements; ``restart`` drops a round that was interrupted."""

    force: bool = False
    restart: bool = False


class PromoteBody(BaseModel):
    version: Title = ""
    reason: Title = ""


class RollbackBody(BaseModel):
    reason: Title = ""


class TrialBody(BaseModel):
    """The candidate, or null to end the trial; the share of turns that show both versions; the
    number of people's messages that labelers compare, too, which they then read."""

    version: Title | None = None
    share: FiniteFloat = 0.1
    labelled: int = Field(0, ge=0, le=MOST_LABELLED)


@router.get("")
async def show(request: Request) -> Response:
    """All names with versions, and served models that have none yet."""
    require_role(request, ADMINS)
    names = await asyncio.to_thread(versions.names)
    plain = [each.name for each in _engine(request).models.values() if each.version is None]
    served = [each for each in plain if can_be_named(each)]
    found = [await _shown(request, name) for name in dict.fromkeys([*names, *served])]
    return json_response({"models": found})


@router.post("/{name}/improve")
async def improve(request: Request, name: str, body: ImproveBody) -> Response:
    """Start an improvement, a process of its own, or go on with one; 409 if one runs."""
    by = require_role(request, ADMINS).name
    word, improvements = await _word(request, name), _improvements(request)
    given = body.model_dump()
    if not await _changed(lambda: improvements.start(name, word, by, **given)):
        raise ApiError(409, f"an improvement of {name} runs already", code="improvement_runs")
    return json_response({"state": "running"}, status=202)


@router.get("/{name}/improve")
async def improvement(request: Request, name: str) -> Response:
    """How the last improvement stands; null if there was none."""
    require_role(request, ADMINS)
    await _word(request, name)
    found = await asyncio.to_thread(_improvements(request).state, name)
    if found is None:
        return Response(b"null", media_type="application/json")
    return json_response(found)


@router.post("/{name}/stop")
async def stop(request: Request, name: str) -> Response:
    """Ask a running improvement to stop; it can go on later. 409 if none runs."""
    require_role(request, ADMINS)
    await _word(request, name)
    if not await _changed(lambda: _improvements(request).stop(name)):
        raise ApiError(409, f"no improvement of {name} runs", code="no_improvement")
    return json_response({"state": "stopping"}, status=202)


@router.post("/{name}/promote")
async def promote(request: Request, name: str, body: PromoteBody) -> Response:
    """Make a version the promoted one; it is served once it is read."""
    by = require_role(request, ADMINS).name
    number = await _number(name, body.version)
    await _changed(lambda: versions.promote(name, number, by, body.reason), _engine(request))
    return await _switched(request, name)


@router.post("/{name}/rollback")
async def rollback(request: Request, name: str, body: RollbackBody) -> Response:
    """Return to the version that was promoted before."""
    by = require_role(request, ADMINS).name
    await _check_name(name)
    await _changed(lambda: versions.rollback(name, by, body.reason))
    return await _switched(request, name)


@router.post("/{name}/trial")
async def trial(request: Request, name: str, body: TrialBody) -> Response:
    """Begin a trial, or end it."""
    require_role(request, ADMINS)
    if body.version is None:
        await _check_name(name)
        lineage = await _changed(lambda: versions.end_trial(name))
    else:
        number = await _number(name, body.version)
        if not 0 <= body.share <= 1:
            raise ApiError(
                400, f"share = {body.share}: a share of the turns, 0 to 1", param="share"
            )
        lineage = await _changed(
            lambda: versions.set_trial(name, number, body.share), _engine(request)
        )
        if body.labelled:
            words = f"{name}@{number}", f"{name}@{lineage.promoted}"
            await _changed(lambda: _improvements(request).ask_labelers(*words, body.labelled))
    await _following(request).refresh(name)
    return json_response({"trial": asdict(lineage.trial) if lineage.trial else None})


@router.get("/{name}/feedback")
async def feedback(request: Request, name: str, before: str = "") -> Response:
    """What people judged of a model's answers, the newest first, with the conversation."""
    require_role(request, ADMINS)
    await _word(request, name)
    rows, more = await with_store(request, lambda store, _: judged_of(store, name, before), ADMINS)
    shown = [row | {"created": iso_time(row["created"])} for row in rows]
    return json_response({"rows": shown, "next": more})


async def _shown(request: Request, name: str) -> dict[str, Any]:
    improvements = _improvements(request)
    found: dict[str, Any] = {
        "name": name,
        "promoted": None,
        "served": None,
        "problem": "",
        "versions": [],
        "promotions": [],
        "refusals": [],
        "trial": None,
        "votes": None,
    }
    try:
        if name in await asyncio.to_thread(versions.names):
            found |= await _lineage(request, name)
    except UserError as error:  # damaged: what is served goes on
        found["problem"] = error.problem
    followed = _following(request).all.get(name)
    if followed is not None:
        found["served"] = _engine(request).models[followed.served].recorded
        found["problem"] = followed.problem or followed.votes_problem or found["problem"]
    judged = await improvements.judged(name, await _word(request, name))
    if judged is not None:
        people: dict[str, int] = judged["people"]
        names = await with_store(request, lambda store, _: store.names(people), ADMINS)
        by_id = {key: judged[key] for key in ("people", "bursts", "capped") if key in judged}
        judged = judged | {
            key: {names.get(person, person): count for person, count in counts.items()}
            for key, counts in by_id.items()
        }
    state = await asyncio.to_thread(improvements.state, name)
    return found | {"judged": judged, "improvement": state}


async def _lineage(request: Request, name: str) -> dict[str, Any]:
    lineage = await asyncio.to_thread(versions.lineage_of, name)
    votes, store = None, request.app.state.store
    if lineage.trial is not None:
        votes = await in_database(votes_json, store, name, lineage.trial, lineage.promoted)
    made = await asyncio.to_thread(versions.versions, name)
    return {
        "promoted": f"{name}@{lineage.promoted}",
        "versions": [each.as_dict() for each in made],
        "promotions": [asdict(each) for each in lineage.promotions],
        "refusals": [asdict(each) for each in lineage.refusals],
        "trial": asdict(lineage.trial) if lineage.trial else None,
        "votes": votes,
    }


async def _switched(request: Request, name: str) -> Response:
    """The promoted version, and what this server serves now."""
    following = _following(request)
    await following.refresh(name)
    lineage = await _changed(lambda: versions.lineage_of(name))
    found: dict[str, Any] = {"promoted": f"{name}@{lineage.promoted}"}
    followed = following.all.get(name)
    if followed is not None:
        found["served"] = _engine(request).models[followed.served].recorded
        found["problem"] = followed.problem or followed.votes_problem
    return json_response(found)


async def _changed(work: Callable[[], Result], beside: AsyncEngine | None = None) -> Result:
    """The work's result; it rests while this engine writes replies, if one is given.

    Raises:
        ApiError: the versions do not allow it (409).
    """

    def gently() -> Result:
        with small_portions(beside.is_writing) if beside else contextlib.nullcontext():
            return work()

    try:
        return await asyncio.to_thread(gently)
    except UserError as error:
        message = error.problem if not error.fix else f"{error.problem}; {error.fix}"
        raise ApiError(409, message, code="version_conflict") from error


async def _check_name(name: str) -> None:
    if name not in await asyncio.to_thread(versions.names):
        raise ApiError(404, f"{name} has no versions", code="not_found")


async def _number(name: str, word: str) -> int:
    """The number of ``NAME@N``; raises ApiError (404) if there is no such version."""
    await _check_name(name)
    given, number = versions.split_version(word)
    there = [each.number for each in await _changed(lambda: versions.versions(name))]
    if given != name or number not in there:
        problem = f"{word or 'version'}: no version of {name}; it has {', '.join(map(str, there))}"
        raise ApiError(404, problem, param="version", code="not_found")
    return number


async def _word(request: Request, name: str) -> str:
    """What commands call a name with versions, or a served model without any."""
    if name in await asyncio.to_thread(versions.names):
        return name
    found: ServedModel | None = _engine(request).models.get(name)
    if found is None or found.version is not None:
        raise ApiError(404, f"{name} has no versions", code="not_found")
    return found.source


def _engine(request: Request) -> AsyncEngine:
    found: AsyncEngine = request.app.state.engine
    return found


def _following(request: Request) -> Following:
    found: Following = request.app.state.following
    return found


def _improvements(request: Request) -> Improvements:
    found: Improvements = request.app.state.improvements
    return found
