"""Several processes on this machine for tests, forked so that PyTorch is imported once.

What FSDP2 imports at its first use is imported here, not in each process.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401
import torch.distributed as dist

from lmsmith.core.errors import Interrupted
from lmsmith.device import HOST
from lmsmith.training import loop, parallel


def in_processes(
    count: int,
    place: Path,
    work: Callable[[], None],
    timeout: float = 60,
    make_store: Callable[[int], Any] | None = None,
    allowed: tuple[int, ...] = (0,),
) -> None:
    """Do ``work`` in so many forked processes that meet each other; fails if one does.

    They meet at the file ``place``, or at the store that each makes of its rank. Their exit codes
    must be among ``allowed``; a signal's is negative.
    """
    if count == 1:
        work()
        return
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            code = 1
            try:
                store = make_store(rank) if make_store else dist.FileStore(str(place), count)
                parallel.join(HOST, timeout, store, rank, count)
                work()
                code = 0
            except Interrupted:
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if not set(codes) <= set(allowed):
        raise SystemExit(f"{count} processes ended with {codes}")


@contextlib.contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """As after Ctrl-C in that step."""
    real, calls = loop.stop_requested, 0

    def stop() -> int | None:
        nonlocal calls
        calls += 1
        return 2 if calls > step else None

    loop.stop_requested = stop
    try:
        yield
    finally:
        loop.stop_requested = real
