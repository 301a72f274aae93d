"""What a step may ask of the machine that runs it: one protocol, whatever the engine.

A step is made of pure functions on documents and of the operations of `Engine`. The result of
every operation is a function of its inputs alone: not of the number of workers, nor of the order
in which they finish. Functions and broadcasts are picklable: module-level functions, and
`functools.partial` of them with frozen dataclasses of settings.

Each `Data`, `Pairs` and `Lookup` has a ``key``, a fingerprint of all that made it. An engine that
finds the result of the same key in its folder takes it from there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lmsmith.core.config import encode
from lmsmith.core.files import fingerprint
from lmsmith.core.version import VERSION
from lmsmith.corpus.build.document import Document, Removed, Yielded

FORMAT = 4
"""Raised when the code makes something else from the same settings and files."""

Key: TypeAlias = bytes | str
Value: TypeAlias = Any
"""What msgpack holds: bytes, text, numbers, and lists of these (a tuple comes back as a list).
Values of one key must be comparable with each other."""

Pair: TypeAlias = tuple[Key, Value]

Mapper: TypeAlias = Callable[[Iterable[Document], Any], Iterator[Yielded]]
"""``function(documents of a chunk, broadcast)``: documents go on, the rest is recorded."""

Emitter: TypeAlias = Callable[[Iterable[Document], Any], Iterator[Pair]]
Combiner: TypeAlias = Callable[[Any, Iterable[Value]], Iterable[Pair]]
"""``combine(key, all values of the key, in order)``; a step knows which kind of `Key` it made.
The values come one by one and may be more than fit the memory."""

ShardWriter: TypeAlias = Callable[[Sequence[Document], Path, Any], dict[str, Any]]
"""``write(documents in order, an empty folder, broadcast)`` → a record of what it wrote."""


Data: TypeAlias = Any
"""Documents, in chunks; the engine's own, with a ``key``."""

Pairs: TypeAlias = Any
"""Keys and values, divided by a hash of the key; the engine's own, with a ``key``."""


class Lookup(Protocol):
    """Values by key, kept on disk: a broadcast that does not have to fit the memory."""

    key: str

    def get(self, key: Key) -> Value | None: ...

    def __len__(self) -> int: ...


class Engine(Protocol):
    """The operations on documents and pairs. ``name`` names the folder of the result."""

    def read(self, name: str, items: Sequence[Any], function: Mapper, key: str) -> Data:
        """Documents of files: ``function(item, None)`` for each item, divided among workers.

        Args:
            key: fingerprint of the files' contents and of the settings of reading.
        """

    def map(self, data: Data, name: str, function: Mapper, broadcast: Any = None) -> Data:
        """Each chunk through a function. Nothing runs before `checkpoint`, `pairs` or `arrange`."""

    def checkpoint(self, data: Data, name: str) -> Data:
        """Run the maps that wait, and keep the documents; what comes after reads them from there.

        What the maps removed and counted is kept with them, under the name of each map.
        """

    def pairs(self, data: Data, name: str, emit: Emitter, broadcast: Any = None) -> Pairs:
        """Keys and values of documents. ``data`` should be a checkpoint, or its maps run twice."""

    def union(self, parts: Sequence[Pairs]) -> Pairs:
        """The pairs of several as one, for a `reduce` over all of them (a join by key)."""

    def reduce(self, pairs: Pairs, name: str, combine: Combiner) -> Pairs:
        """Group by key; a key may have any number of values."""

    def lookup(self, pairs: Pairs, name: str) -> Lookup:
        """The pairs as a `Lookup`; of several values of a key the smallest counts."""

    def collect(self, pairs: Pairs) -> list[Pair]:
        """All pairs, sorted, in the memory of this process."""

    def sample(self, data: Data, seed: int, step: str, share: float) -> list[Document]:
        """The documents whose `point` is below ``share``, in the order of `arrange`."""

    def arrange(
        self, data: Data, folder: Path, parts: dict[str, int], write: ShardWriter, broadcast: Any
    ) -> list[dict[str, Any]]:
        """Write each source in ``parts[source]`` folders, its documents in the order of a hash.

        The order is that of ``digest(id)``; part p of n has those whose digest, as a fraction,
        lies in [p / n, (p + 1) / n). ``folder/SOURCE/PPPPP`` appears whole or not at all.

        Returns:
            The records of all parts, in order, each with ``source``, ``part`` and ``folder``.
        """

    def sizes(self, data: Data) -> dict[str, tuple[int, int]]:
        """Source → documents and bytes of text of a checkpoint."""

    def record(self, data: Data) -> dict[str, Any]:
        """What the maps of a checkpoint did: documents and bytes in and out, counts, time."""

    def removed(self, data: Data) -> Iterator[Removed]:
        """What the maps of a checkpoint removed, in an order of the engine's own."""

    @property
    def seconds(self) -> dict[str, float]:
        """Name of an operation → wall time that this result took, in whichever call it was."""

    def about(self) -> dict[str, Any]:
        """Name of the engine and how much works in it, for the record of the build."""

    def close(self) -> None:
        """End what the engine started."""


def identity(value: Any) -> Any:
    """A function, a broadcast or settings as JSON that is equal only if they do the same."""
    if isinstance(value, functools.partial):
        return [identity(value.func), identity(value.args), identity(value.keywords)]
    if (key := getattr(value, "key", None)) is not None and isinstance(key, str):
        return key
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, encode(value)]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, dict):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no key, and is no setting")


def key_of(*parts: Any) -> str:
    """The key of what these parts make with this version's code."""
    return fingerprint([VERSION, FORMAT, *map(identity, parts)])
