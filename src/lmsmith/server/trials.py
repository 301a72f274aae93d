"""A candidate on trial: which turns show two versions, on which side each stands, and the vote.

Turns and sides are chosen by hashes of the trial, the person and the message: random to people, and
the same for both answers and after a restart. Votes are counted in the database after each of them;
the lineage is changed by the decision alone, so that a vote that comes too late changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Literal

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Trial
from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store
from lmsmith.feedback.votes import Votes, compared_versions, has_voted, votes_on
from lmsmith.server.auth import in_database
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError
from lmsmith.server.following import Followed, Following
from lmsmith.server.models import ServedModel, served_model
from lmsmith.statistics.sequential import Decision

log = logging.getLogger("lmsmith.server")

Side = Literal["left", "right"]
Counted = Literal["counted", "decided", "ended"]


class Trials:
    """The trials of the served models."""

    def __init__(self, engine: AsyncEngine, store: Store, following: Following) -> None:
        self._engine, self._store, self._following = engine, store, following
        self._deciding = asyncio.Lock()
        following.on_trial = self.decide

    async def shows_pair(self, person: str, message: int, model: str | None) -> bool:
        """Whether a person's message is answered by both versions of a model."""
        each = self._on_trial(served_model(self._engine.models, model).name)
        if each is None or each.trial is None:
            return False
        if _fraction("turn", each, person, message) >= each.trial.share:
            return False
        return await in_database(self._may_vote, each, person, message)

    async def on_side(
        self, person: str, message: int, model: str | None, side: Side
    ) -> ServedModel:
        """The version that answers a message on one side; raises ApiError (409) for a message
        that is not answered by two."""
        served = served_model(self._engine.models, model)
        if not await self.shows_pair(person, message, model):
            problem = f"message {message} is not, or no longer, answered by two versions"
            raise ApiError(409, f"{problem}; ask for one answer, without side", code="no_pair")
        each, candidate = self._on_trial(served.name), self._engine.candidates.get(served.name)
        if each is None or candidate is None:  # the trial has ended since
            return self._engine.models[served.name]
        on_left = _fraction("left", each, person, message) < 0.5
        return candidate if on_left == (side == "left") else self._engine.models[served.name]

    async def compared(self, left: int, right: int) -> Counted | None:
        """Count a comparison that was kept; None if it is not of two versions of one model."""
        one, other = await in_database(compared_versions, self._store, left, right)
        name, number = versions.split_version(one)
        other_name, other_number = versions.split_version(other)
        if name != other_name or None in (number, other_number) or number == other_number:
            return None
        each = self._following.all.get(name)
        if each is None or each.trial is None or not await self._is_between(each, one, other):
            return "ended"
        return "decided" if await self.decide(each) else "counted"

    async def ranked(self) -> None:
        """Count after a ranking of the labelling queue was kept."""
        for each in self._following.all.values():
            if each.trial is not None:
                await self.decide(each)

    async def decide(self, each: Followed) -> bool:
        """Promote the candidate or end its trial, if the votes say so; whether they did."""
        async with self._deciding:
            trial = each.trial
            if trial is None:
                return False
            try:
                decided = await in_database(_decide, self._store, each.name, trial)
            except UserError as error:
                problem = f"the votes decide nothing: {error.problem}"
                if problem != each.votes_problem:
                    log.error("%s: the votes decide nothing: %s", each.name, error)
                each.votes_problem = problem
                return False
            each.votes_problem = ""
        if decided:
            await self._following.refresh(each.name)
        return decided

    async def _is_between(self, each: Followed, one: str, other: str) -> bool:
        try:
            lineage = await asyncio.to_thread(versions.lineage_of, each.name)
        except UserError:  # logged where it is followed
            return False
        if lineage.trial is None or lineage.trial != each.trial:
            return False
        numbers = lineage.trial.candidate, lineage.promoted
        return {one, other} == {f"{each.name}@{number}" for number in numbers}

    def _on_trial(self, served: str) -> Followed | None:
        if served not in self._engine.candidates:
            return None
        found = (each for each in self._following.all.values() if each.served == served)
        return next(found, None)

    def _may_vote(self, each: Followed, person: str, message: int) -> bool:
        candidate = self._engine.candidates.get(each.served)
        if candidate is None or not self._store.compares(person):
            return False
        pair = candidate.recorded, self._engine.models[each.served].recorded
        return not has_voted(self._store, person, message, pair)


def state_of(store: Store, name: str, trial: Trial, promoted: int) -> tuple[Votes, Decision]:
    """The votes on a candidate and what they say."""
    votes = votes_on(store, f"{name}@{trial.candidate}", f"{name}@{promoted}")
    return votes, votes.decision(trial.test)


def votes_json(store: Store, name: str, trial: Trial, promoted: int) -> Mapping[str, Any]:
    """The state of the vote, for admins."""
    votes, decision = state_of(store, name, trial, promoted)
    share = decision.share
    return {
        "votes": decision.votes,
        "people": votes.people,
        "waiting": votes.waiting,
        "share": {"value": share.value, "low": share.low, "high": share.high},
        "e_value": decision.e_value,
        "outcome": decision.outcome,
    }


def _decide(store: Store, name: str, trial: Trial) -> bool:
    lineage = versions.lineage_of(name)
    if lineage.trial != trial:
        return True  # somebody else has decided
    votes, decision = state_of(store, name, trial, lineage.promoted)
    if decision.outcome == "undecided":
        return False
    share = decision.share
    figures = (
        f"{decision.votes} votes of {votes.people} people, {share.value:.1%} for {name}@"
        f"{trial.candidate} ({share.low:.1%} to {share.high:.1%}), e-value {decision.e_value:.3g}"
    )
    if decision.outcome == "better":
        versions.promote(
            name,
            trial.candidate,
            "votes",
            f"better: {figures}",
            instead_of=lineage.promoted,
            trial=trial,
        )
    else:
        versions.refuse(name, trial, decision.outcome, figures)
    log.warning("%s: the votes say %s: %s", name, decision.outcome, figures)
    return True


def _fraction(what: str, each: Followed, person: str, message: int) -> float:
    """A number of [0, 1) that is drawn once for a trial, a person and a message."""
    assert each.trial is not None
    name = f"{what}\0{each.name}\0{each.trial.candidate}\0{each.trial.began}\0{person}\0{message}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
