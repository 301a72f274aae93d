"""Files of keys and values divided by a hash of the key: what a shuffle writes and reads."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import msgspec

from lmsmith.core.errors import needs_extra
from lmsmith.core.files import atomic_file
from lmsmith.corpus.build.document import Document, digest
from lmsmith.corpus.build.engine import Combiner, Key, Pair, Value
from lmsmith.corpus.build.sorted_runs import (
    Load,
    Place,
    loads,
    merged,
    portions,
    write_run,
)

_TAIL = struct.Struct("<Q")
_PLACE = struct.Struct("<QI")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def partition_of(hashed: bytes, partitions: int) -> int:
    """The range of hashes that one lies in: ranges in order hold hashes in order."""
    return int.from_bytes(hashed[:8], "big") * partitions >> 64


def write_spill(path: Path, parts: Mapping[int, list[Any]]) -> None:
    """Write lists by partition: compressed segments, their index, the index's place."""
    with needs_extra("corpus"):
        import zstandard
    index: dict[int, tuple[int, int]] = {}
    with atomic_file(path) as partial, partial.open("wb") as file:
        packer = zstandard.ZstdCompressor(level=1)
        for number in sorted(parts):
            content = packer.compress(_encode(parts[number]))
            index[number] = (file.tell(), len(content))
            file.write(content)
        _write_index(file, index)


def read_spill(path: Path, number: int) -> list[Any]:
    """The list of one partition."""
    with needs_extra("corpus"):
        import zstandard
    with path.open("rb") as file:
        index = _read_index(file)
        if number not in index:
            return []
        start, size = index[number]
        file.seek(start)
        content = zstandard.ZstdDecompressor().decompress(file.read(size))
    found: list[Any] = _decode(content)
    return found


def _write_index(file: IO[bytes], index: Mapping[int, Any]) -> None:
    place = file.tell()
    file.write(_encode(index))
    file.write(_TAIL.pack(place))


def _read_index(file: IO[bytes]) -> dict[int, Any]:
    file.seek(-_TAIL.size, 2)
    (place,) = _TAIL.unpack(file.read())
    file.seek(place)
    found: dict[int, Any] = _decode(file.read()[: -_TAIL.size])
    return found


def spill_pairs(path: Path, pairs: Iterable[Pair], partitions: int) -> None:
    """Write pairs by the hash of their keys, in sorted runs."""
    index: dict[int, list[list[Place]]] = {}
    with atomic_file(path) as partial, partial.open("wb") as file:
        for portion in portions(pairs):
            parts: dict[int, list[Any]] = defaultdict(list)
            for pair in portion:
                parts[partition_of(digest(pair[0]), partitions)].append(pair)
            for number in sorted(parts):
                index.setdefault(number, []).append(write_run(file, sorted(parts[number])))
        _write_index(file, index)


def read_pairs(paths: Iterable[Path], number: int) -> Iterator[Pair]:
    """All pairs of one partition in the order of keys and values; few of them are in memory.

    A key is bytes or text throughout one set of pairs.
    """
    runs: list[list[Load]] = []
    for path in paths:
        with path.open("rb") as file:
            index = _read_index(file)
        runs += [loads(path, places) for places in index.get(number, ())]
    return merged(runs)


def combined(pairs: Iterable[Pair], combine: Combiner) -> Iterator[Pair]:
    """The pairs that ``combine`` makes of each key's values; ``pairs`` are sorted."""
    for key, group in groupby(pairs, key=itemgetter(0)):
        yield from combine(key, (value for _, value in group))


def write_lookup(path: Path, pairs: Iterable[Pair]) -> int:
    """Write one partition of a lookup; returns the number of keys.

    Args:
        pairs: the first of a key's values counts.
    """
    found: dict[bytes, bytes] = {}
    before: Key | None = None
    for key, value in pairs:
        if key != before:
            found.setdefault(digest(key), _encode(value))
            before = key
    values, places, start = [], [], 0
    for hashed in sorted(found):
        content = found[hashed]
        values.append(content)
        places.append(hashed + _PLACE.pack(start, len(content)))
        start += len(content)
    with atomic_file(path) as partial:
        partial.write_bytes(_TAIL.pack(len(places)) + b"".join(places) + b"".join(values))
    return len(places)


class LocalLookup:
    """Values by key in files of sorted hashes, found by bisection without loading the files."""

    def __init__(self, folder: Path, partitions: int, size: int, key: str) -> None:
        self._folder, self._partitions, self._size, self.key = folder, partitions, size, key

    def __len__(self) -> int:
        return self._size

    def get(self, key: Key) -> Value | None:
        """The value of a key, or None."""
        if not self._size:
            return None
        hashed = digest(key)
        number = partition_of(hashed, self._partitions)
        return _mapped(self._folder, number, self.key).get(hashed)


class _Mapped:
    """One file of a lookup, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import mmap

        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (self._count,) = _TAIL.unpack(self._content[: _TAIL.size])
        self._width = 16 + _PLACE.size
        self._values = _TAIL.size + self._count * self._width

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, number: int) -> bytes:
        start = _TAIL.size + number * self._width
        return bytes(self._content[start : start + 16])

    def get(self, hashed: bytes) -> Value | None:
        place = bisect_left(self, hashed)
        if place == len(self) or self[place] != hashed:
            return None
        at = _TAIL.size + place * self._width + 16
        start, size = _PLACE.unpack(self._content[at : at + _PLACE.size])
        begin = self._values + start
        return _decode(self._content[begin : begin + size])


@lru_cache(maxsize=512)
def _mapped(folder: Path, number: int, key: str) -> _Mapped:
    """A partition's file; the lookup's key tells it from one that another build made there."""
    del key
    return _Mapped(folder / f"{number:06d}.lookup")


def arranged_by(
    parts: Mapping[str, int],
) -> tuple[dict[str, int], Callable[[Document], int]]:
    """Numbers of the parts of all sources laid end to end: the first of each, and a document's."""
    first, total = {}, 0
    for source in sorted(parts):
        first[source] = total
        total += parts[source]

    def number(document: Document) -> int:
        share = partition_of(digest(document.id), parts[document.source])
        return first[document.source] + share

    return first, number
