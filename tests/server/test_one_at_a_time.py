"""The queue of a model without a scheduler: one request computes, also after a client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from lmsmith.server.errors import ApiError
from lmsmith.server.one_at_a_time import OneAtATime
from lmsmith.server.requests import Limits


class Counted:
    """Work that waits for a signal, and counts how many threads are in it at once."""

    def __init__(self) -> None:
        self.begun, self.most, self.free = 0, 0, threading.Event()
        self._live, self._lock = 0, threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.begun += 1
            self._live += 1
            self.most = max(self.most, self._live)
        self.free.wait(10)
        with self._lock:
            self._live -= 1
        return self.begun


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_one_computes_though_clients_hang_up() -> None:
    async def requests() -> None:
        queue, work, limits = OneAtATime("de"), Counted(), Limits(1, 3, 60)
        tasks = [asyncio.create_task(queue.run(limits, work)) for _ in range(3)]
        await until(lambda: work.begun == 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The thread of the first one computes still, and has its place; the others have none.
        tasks = [asyncio.create_task(queue.run(limits, work)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert work.begun == 1
        with pytest.raises(ApiError, match="3 requests wait for de already") as full:
            await queue.run(limits, work)
        assert (full.value.status, full.value.code) == (429, "queue_full")
        work.free.set()
        assert await asyncio.gather(*tasks) == [2, 3]
        assert (work.begun, work.most) == (3, 1)
        assert await queue.run(limits, work) == 4

    asyncio.run(requests())


def test_a_timeout_is_504_and_leaves_the_turn_to_its_thread() -> None:
    async def requests() -> None:
        queue, work = OneAtATime("de"), Counted()
        for _ in range(2):
            with pytest.raises(ApiError, match=r"no answer within 0\.05 seconds") as late:
                await queue.run(Limits(1, 9, 0.05), work)
            assert (late.value.status, late.value.code) == (504, "timeout")
        assert work.begun == 1
        work.free.set()
        assert await queue.run(Limits(1, 9, 60), lambda: "next") == "next"
        assert work.begun == 1

    asyncio.run(requests())


def test_an_error_of_the_work_is_the_requests() -> None:
    def broken() -> None:
        raise ApiError(400, "too long")

    with pytest.raises(ApiError, match="too long"):
        asyncio.run(OneAtATime("de").run(Limits(1, 9, 60), broken))
