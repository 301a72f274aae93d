"""Served models follow their lineage: a newly promoted version replaces the one before.

The lineage's file is looked at once a second, and at once after a route that changes it. The new
version is read beside the old one, which answers until then, and finishes its requests after: in
small portions (`lmsmith.server.pacing`) and with one thread, so that running replies do not wait.
A candidate on trial is read in the same way and waits beside the promoted version. What cannot be
read leaves everything as it was, is logged, and is tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import LINEAGE_FILE, Trial, Version
from lmsmith.core.errors import UserError
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.models import Loader, ServedModel, has_become
from lmsmith.training.machine import compute_aside

log = logging.getLogger("lmsmith.server")

POLL_SECONDS = 1.0
REFRESH_SECONDS = 30.0
"""Time that a request waits for the switch that it has caused."""
FIRST_RETRY, LAST_RETRY = 5.0, 300.0
"""Seconds until a version that could not be loaded is tried again; the time doubles."""

Stamp = tuple[int, int, int]


@dataclass
class Followed:
    """A served model and the lineage that it follows.

    Attributes:
        name: of the versions.
        served: the name that clients use.
        trial: of the candidate that is loaded.
        problem: why the promoted version, or the candidate, is not the one in memory; else empty.
        votes_problem: why the votes of the trial decide nothing; else empty.
        load_seconds: time that reading the last version took.
    """

    name: str
    served: str
    trial: Trial | None = None
    problem: str = ""
    votes_problem: str = ""
    load_seconds: float = 0.0
    seen: Stamp | None = None
    retry_at: float = 0.0
    wait: float = FIRST_RETRY
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Following:
    """Keeps the models of an engine at the promoted versions of their names.

    Args:
        engine: its models that follow are looked after.
        loader: reads versions; nothing is followed if None.

    A model without versions is followed from the moment when it becomes version 1 of its name.

    Attributes:
        all: by the name of the versions.
        on_trial: is called when a trial was found in a lineage that has changed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        loader: Loader | None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._engine, self._loader, self._poll_seconds = engine, loader, poll_seconds
        self.on_trial: Callable[[Followed], Awaitable[object]] | None = None
        self._poke = asyncio.Event()
        self._looked: dict[str, Stamp | None] = {}
        self.all = {
            model.version.name: Followed(model.version.name, model.name)
            for model in engine.models.values()
            if loader and model.follows and model.version
        }
        engine.on_drop = self._on_drop

    async def run(self) -> None:
        """Look after the models until this task is cancelled."""
        while self._loader is not None:
            await self._find_more()
            for each in list(self.all.values()):
                await self.check(each)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), self._poll_seconds)
            self._poke.clear()

    async def refresh(self, name: str) -> None:
        """Follow a lineage that was just changed; after `REFRESH_SECONDS`, in the background."""
        await self._find_more()
        if name in self.all:
            self.all[name].retry_at = 0.0
            check = asyncio.ensure_future(self.check(self.all[name]))
            await asyncio.wait({check}, timeout=REFRESH_SECONDS)

    async def _find_more(self) -> None:
        """Follow the models whose first version was made since."""
        plain = [each for each in self._engine.models.values() if each.version is None]
        if self._loader is None or not plain:
            return
        there = versions.names()
        for model in plain:
            if model.name not in there or model.name in self.all:
                continue
            stamp = _stamp(model.name)
            if stamp == self._looked.get(model.name):
                continue
            self._looked[model.name] = stamp
            if await asyncio.to_thread(has_become, model.name, model.source):
                model.follows = True
                self.all.setdefault(model.name, Followed(model.name, model.name))

    def _on_drop(self) -> None:
        """There is more room: what did not fit is tried again."""
        for each in self.all.values():
            each.retry_at = 0.0
        self._poke.set()

    async def check(self, each: Followed) -> None:
        """Load what a lineage names now, if it has changed, or could not be loaded before."""
        async with each.lock:
            stamp = _stamp(each.name)
            if stamp == each.seen and not (each.problem and time.monotonic() >= each.retry_at):
                return
            try:
                await self._follow(each)
                each.problem, each.wait, each.seen = "", FIRST_RETRY, stamp
            except Exception as error:
                problem = error.problem if isinstance(error, UserError) else repr(error)
                if problem != each.problem:
                    log.error(
                        "%s: its versions are not followed, and %s goes on: %s",
                        each.name,
                        self._engine.models[each.served].recorded,
                        error,
                        exc_info=None if isinstance(error, UserError) else error,
                    )
                if stamp != each.seen:
                    each.wait = FIRST_RETRY
                each.problem, each.seen = problem, stamp
                each.retry_at = time.monotonic() + each.wait
                each.wait = min(LAST_RETRY, 2 * each.wait)
        if each.trial is None:
            each.votes_problem = ""
        elif self.on_trial is not None:
            await self.on_trial(each)

    async def _follow(self, each: Followed) -> None:
        lineage = await asyncio.to_thread(versions.lineage_of, each.name)
        promoted, trial = lineage.promoted, lineage.trial
        on_trial = trial.candidate if trial and trial.candidate != promoted else None
        each.trial = each.trial if each.trial == trial else None
        candidate = self._engine.candidates.get(each.served)
        if candidate is not None and _number(candidate) not in (on_trial, promoted):
            self._engine.set_candidate(each.served, None)
            candidate = None
        if _number(self._engine.models[each.served]) != promoted:
            if candidate is None or _number(candidate) != promoted:
                made = await self._load(each, promoted)
            else:
                made = candidate
            self._engine.replace(made)
            log.warning("%s is %s now", each.served, made.recorded)
        if on_trial is not None and each.served not in self._engine.candidates:
            self._engine.set_candidate(each.served, await self._load(each, on_trial))
        each.trial = trial if on_trial is not None else None

    async def _load(self, each: Followed, number: int) -> ServedModel:
        now, loaded = self._engine.models[each.served], list(self._engine.loaded.values())
        started = time.perf_counter()
        assert self._loader is not None  # or there would be nothing to follow
        loader = self._loader

        def load() -> ServedModel:
            found: Version = versions.version(each.name, number)
            return compute_aside(lambda: loader.beside(found, now, loaded), threads=1)

        made = await asyncio.to_thread(load)
        each.load_seconds = time.perf_counter() - started
        return made


def _number(model: ServedModel) -> int:
    return model.version.number if model.version else 0


def _stamp(name: str) -> Stamp | None:
    """Changes with every promotion and trial, since the file is replaced as a whole."""
    try:
        found = (versions.folder_of(name) / LINEAGE_FILE).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
