"""Batches from object storage, read in a thread while earlier ones are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from lmsmith.corpus.batches import Batch, PretrainingBatches

DEPTH = 4
"""Batches that wait in memory at most."""


@contextmanager
def read_ahead(
    batches: PretrainingBatches, steps: int, depth: int = DEPTH
) -> Iterator[Callable[[int], Batch]]:
    """Inside, `PretrainingBatches.batch`, with the batches after it being read meanwhile.

    Where all sources are files, which take no time to read, nothing is read ahead.

    Args:
        steps: after which none is read.
        depth: how many batches are read ahead.
    """
    if not batches.is_remote:
        yield batches.batch
        return
    coming: dict[int, Future[Batch]] = {}
    pool = ThreadPoolExecutor(1, "read_ahead")

    def found(step: int) -> Batch:
        window = range(step, min(step + depth + 1, steps))
        for number in [each for each in coming if each not in window]:
            coming.pop(number).cancel()
        for number in window:
            if number not in coming:
                coming[number] = pool.submit(batches.batch, number)
        return coming.pop(step).result()

    try:
        yield found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
