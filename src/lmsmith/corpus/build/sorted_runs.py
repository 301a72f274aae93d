"""Sorted runs of values in files: written block by block, merged with a block of each in memory."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec

from lmsmith.core.errors import needs_extra
from lmsmith.runs.signals import stop_if_requested

RUN_BYTES = 1 << 26
"""Memory of the values that are sorted at a time."""

BLOCK_BYTES = 1 << 15
"""Packed values of a block."""

_SOME = 64
_OBJECT_BYTES = 250
"""Memory of a value, besides its packed bytes."""

Place: TypeAlias = tuple[int, int]
"""First byte and size of a block in its file."""

Load: TypeAlias = Callable[[], list[Any]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def portions(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of values, each of about `RUN_BYTES` of memory."""
    values, held, size = iter(values), [], 0
    while some := list(islice(values, _SOME)):
        stop_if_requested()
        held += some
        size += len(_encode(some)) + _OBJECT_BYTES * len(some)
        if size >= RUN_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def write_run(file: IO[bytes], values: Iterable[Any]) -> list[Place]:
    """Write sorted values; returns the places of their blocks."""
    with needs_extra("corpus"):
        import zstandard
    packer = zstandard.ZstdCompressor(level=1)
    places: list[Place] = []
    block: list[bytes] = []
    size = 0

    def write() -> None:
        content = packer.compress(b"\xdd" + len(block).to_bytes(4, "big") + b"".join(block))
        places.append((file.tell(), len(content)))
        file.write(content)

    for value in values:
        block.append(packed := _encode(value))
        size += len(packed)
        if size >= BLOCK_BYTES:
            write()
            block, size = [], 0
    if block:
        write()
    return places


def loads(path: Path, places: Iterable[Sequence[int]]) -> list[Load]:
    """What loads each block of a run."""
    return [partial(_read_block, path, start, size) for start, size in places]


def _read_block(path: Path, start: int, size: int) -> list[Any]:
    with needs_extra("corpus"):
        import zstandard
    with path.open("rb") as file:
        file.seek(start)
        return _decode(zstandard.ZstdDecompressor().decompress(file.read(size)))


def merged(runs: Iterable[Iterable[Load]]) -> Iterator[Any]:
    """The values of sorted runs in order, with a block of each run in memory."""
    held: list[tuple[list[Any], int, deque[Load]]] = []
    for run in runs:
        if waiting := deque(run):
            held.append((waiting.popleft()(), 0, waiting))
    while held:
        stop_if_requested()
        # Nothing that still waits is smaller than the last value of the block before it.
        known = min((block[-1] for block, _, waiting in held if waiting), default=None)
        ready: list[Any] = []
        following = []
        for block, start, waiting in held:
            end = len(block) if known is None else bisect_right(block, known, start)
            ready += block[start:end]
            if end < len(block):
                following.append((block, end, waiting))
            elif waiting:
                following.append((waiting.popleft()(), 0, waiting))
        held = following
        ready.sort()
        yield from ready


def in_order(values: Iterable[Any]) -> Iterator[Any]:
    """Any number of values in order, sorted by way of a temporary file if they are many."""
    values = iter(values)
    if len(some := list(islice(values, _SOME))) < _SOME:
        yield from sorted(some)
        return
    found = portions(chain(some, values))
    first = next(found)
    if (second := next(found, None)) is None:
        yield from sorted(first)
        return
    with tempfile.NamedTemporaryFile(prefix="lmsmith-") as file:
        runs = [write_run(file, sorted(first)), write_run(file, sorted(second))]
        del first, second
        runs += [write_run(file, sorted(more)) for more in found]
        file.flush()
        yield from merged(loads(Path(file.name), places) for places in runs)
