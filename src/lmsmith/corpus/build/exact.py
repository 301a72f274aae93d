"""Documents with equal text: one stays, the others are removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lmsmith.corpus.build.document import Document, Yielded, digest, removed
from lmsmith.corpus.build.engine import Data, Engine, Key, Pair, Value


def remove_exact(engine: Engine, data: Data, curated: tuple[str, ...]) -> Data:
    """Keep one document of each text: a curated source's first, then the smallest id.

    Args:
        data: a checkpoint.
    """
    pairs = engine.pairs(data, "exact-texts", text_keys, curated)
    doubles = engine.reduce(pairs, "exact-groups", all_but_first)
    lookup = engine.lookup(doubles, "exact-doubles")
    return engine.map(data, "exact", without_doubles, lookup)


def text_keys(documents: Iterable[Document], curated: tuple[str, ...]) -> Iterator[Pair]:
    """(hash of the text, [rank, id]); rank 0 is curated."""
    for each in documents:
        yield digest(each.text), [int(each.source not in curated), each.id]


def all_but_first(_key: Key, values: Iterable[Value]) -> Iterator[Pair]:
    """(id of a double, id of the one that stays)."""
    others = iter(values)
    _, first = next(others)
    yield from ((id, first) for _, id in others)


def without_doubles(documents: Iterable[Document], doubles: Any) -> Iterator[Yielded]:
    """The documents that are no double of another."""
    for each in documents:
        if (kept := doubles.get(each.id)) is None:
            yield each
        else:
            yield removed(each, f"equal to another document: {kept}")
