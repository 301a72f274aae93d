"""A queue for models without a scheduler: one request computes at a time, the others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from lmsmith.server.errors import ApiError, unavailable
from lmsmith.server.requests import Limits

Result = TypeVar("Result")

MOST_CHARACTERS = 64
"""Most characters of a text for each token of the context; more is refused before it is encoded."""


class OneAtATime:
    """The queue before a model, whose work is done in a thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._turn, self._waiting = asyncio.Lock(), 0

    async def run(self, limits: Limits, work: Callable[[], Result]) -> Result:
        """The result of ``work``, when its turn comes.

        Raises:
            ApiError: the queue is full (429), or the time is over (503).
        """
        if self._waiting >= limits.queue:
            problem = f"{self._waiting} requests wait for {self.name} already; try again later"
            headers = {"Retry-After": "1"}
            kind, code = "rate_limit_error", "queue_full"
            raise ApiError(429, problem, kind, code=code, headers=headers)
        self._waiting += 1
        try:
            async with asyncio.timeout(limits.seconds):
                async with self._turn:
                    return await asyncio.to_thread(work)
        except TimeoutError as error:
            problem = f"the request took longer than {limits.seconds:g} seconds"
            raise unavailable(problem, "timeout", seconds=5) from error
        finally:
            self._waiting -= 1
