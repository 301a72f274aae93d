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

SHORT_TEXT = 16_384
"""Characters of a text that takes a few milliseconds."""

DATABASE_THREADS = 8
IN_DATABASE = 2
"""Of `DATABASE_THREADS`, those that one person's requests may have at once."""

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
    """Tokenizers and templates at work, in threads; a person's long texts one after another."""

    def __init__(self) -> None:
        self._turns = Turns(1)

    async def run(self, person: str, characters: int, work: Callable[[], Result]) -> Result:
        """The result of work on a text of so many characters."""
        loop = asyncio.get_running_loop()
        if characters <= SHORT_TEXT:
            return await loop.run_in_executor(_short, work)
        async with self._turns.of(person):
            return await loop.run_in_executor(_long, work)


async def in_database_thread(work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_database, work)
