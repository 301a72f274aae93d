"""Threads for the database and for texts, and the turns that people take in them.

Texts have threads of their own, a long one apart from the short ones: nobody waits for another
person's long text before a short one is tokenized, or a row of the database is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

SHORT_TEXT = 4_096
"""Characters of a text that takes a few milliseconds."""

SHORT_AT_ONCE = 4
"""Short texts of a person that wait for a thread; the others wait behind nobody else's."""

REST = 3
"""A long text's thread rests so many times as long as it has worked, while replies are running."""

LONGEST_REST = 1.0  # seconds

DATABASE_THREADS = 8
IN_DATABASE = 2
"""Those of `DATABASE_THREADS` that one person's requests may have at once."""

_database = ThreadPoolExecutor(DATABASE_THREADS, "database")
_short, _long = ThreadPoolExecutor(2, "texts"), ThreadPoolExecutor(1, "long text")


class Turns:
    """Lets a few requests of each person work at once; their others wait, and nobody else's."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._people: dict[str, tuple[asyncio.Semaphore, set[object]]] = {}

    @contextlib.asynccontextmanager
    async def of(self, person: str) -> AsyncIterator[None]:
        """A person's turn; whoever is nobody in particular has the empty name."""
        semaphore, users = self._people.setdefault(
            person, (asyncio.Semaphore(self._at_once), set())
        )
        me = object()
        users.add(me)
        try:
            async with semaphore:
                yield
        finally:
            users.discard(me)
            if not users:
                self._people.pop(person, None)


class TextThreads:
    """Tokenizers and templates at work, in threads; a person's long texts one after another.

    A long text takes a processor and memory bandwidth from the engine, so there is a rest after
    it: long texts of a third of a second and less have a quarter of one processor, all together,
    while replies are running.

    Args:
        busy: whether replies are running.
    """

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        self._turns, self._short_turns = Turns(1), Turns(SHORT_AT_ONCE)
        self._one_long, self._busy = asyncio.Lock(), busy

    async def run(self, person: str, characters: int, work: Callable[[], Result]) -> Result:
        """The result of work on a text of so many characters."""
        loop = asyncio.get_running_loop()
        if characters <= SHORT_TEXT:
            async with self._short_turns.of(person):
                return await loop.run_in_executor(_short, work)
        async with self._turns.of(person):
            await self._one_long.acquire()
            began = loop.time()
            try:
                return await loop.run_in_executor(_long, work)
            finally:
                rest = min(LONGEST_REST, REST * (loop.time() - began)) if self._busy() else 0.0
                loop.call_later(rest, self._one_long.release)


async def in_database_thread(work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_database, work)
