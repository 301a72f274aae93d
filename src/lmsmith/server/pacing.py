"""Work beside running replies, in small portions with rests between them.

A thread that reads a version competes with the engine twice. It takes a processor, and it holds
Python's lock (GIL), which the engine takes again after every operation of a step. A low priority
(nice) helps with the first and spoils the second: on a busy machine the system lets a thread of low
priority wait while it holds the lock.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

PORTION_SECONDS = 0.0003
"""Least time between two rests."""

REST = 3
"""Length of a rest, in portions of work before it."""


@contextlib.contextmanager
def small_portions(busy: Callable[[], bool]) -> Iterator[None]:
    """Let this thread rest `REST` times as long as it works, while others are busy.

    Python tells of every call and return (`sys.setprofile`), which is where the thread may rest.
    One long call, such as parsing a large file of JSON, is one portion.

    Args:
        busy: whether others have work; it is asked before each rest.
    """
    began, worked = time.perf_counter(), time.thread_time()

    def rest(frame: FrameType, event: str, argument: object) -> None:
        nonlocal began, worked
        if time.perf_counter() - began < PORTION_SECONDS:
            return
        if busy():
            time.sleep(REST * (time.thread_time() - worked))
        began, worked = time.perf_counter(), time.thread_time()

    before = sys.getprofile()
    sys.setprofile(rest)
    try:
        yield
    finally:
        sys.setprofile(before)
