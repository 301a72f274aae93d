"""A queue for models without a scheduler: one request computes at a time, the others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lmsmith.server.errors import ApiError
from lmsmith.server.requests import Limits

Result = TypeVar("Result")

MOST_CHARACTERS = 64
"""Most characters of a text for each token of the context; more is refused before it is encoded."""


class OneAtATime:
    """The queue before a model, whose work is done in a thread of its own.

    A thread cannot be stopped: work that nobody waits for any more keeps its turn to its end. Where
    it has not begun, it is left out.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, f"model {name}")
        self._work: list[Future[Any]] = []

    async def run(self, limits: Limits, work: Callable[[], Result]) -> Result:
        """The result of ``work``, when its turn comes.

        Raises:
            ApiError: the queue is full (429), or the time is over (504).
        """
        self._work = [each for each in self._work if not each.done()]
        if len(self._work) >= limits.queue:
            problem = f"{len(self._work)} requests wait for {self.name} already; try again later"
            headers = {"Retry-After": "1"}
            kind, code = "rate_limit_error", "queue_full"
            raise ApiError(429, problem, kind, code=code, headers=headers)
        future = self._thread.submit(work)
        self._work.append(future)
        try:
            async with asyncio.timeout(limits.seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            problem = f"no answer within {limits.seconds:g} seconds"
            raise ApiError(504, problem, "server_error", code="timeout") from error
