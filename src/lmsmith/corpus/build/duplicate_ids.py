"""Rows of the inputs that bear the id of another row: a sign of files that were copied or joined.

The builder makes each document's id from its source, file and place, so it keeps all such rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmsmith.corpus.build.document import Document, digest
from lmsmith.corpus.build.engine import Data, Engine, Key, Pair, Value

_LATER_PIECE = re.compile(r"#\d+$")
"""Ends the ids of all but the first document of a long text."""

_SHARE = 2
"""Characters before the source in the key of a share of it."""


def find_duplicate_ids(engine: Engine, data: Data) -> dict[str, dict[str, Any]]:
    """Source → ``documents`` with an id that an earlier one has, and an ``example`` of these ids.

    Args:
        data: a checkpoint of what was read.
    """
    named = engine.pairs(data, "ids-named", named_documents)
    again = engine.reduce(named, "ids-again", all_but_one)
    found: dict[str, dict[str, Any]] = {}
    for key, [documents, example] in engine.collect(engine.reduce(again, "ids-counted", counted)):
        about = found.setdefault(str(key)[_SHARE:], {"documents": 0, "example": example})
        about["documents"] += documents
        about["example"] = min(about["example"], example)
    return found


def duplicate_id_warnings(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each source with such rows."""
    for source, about in found.items():
        count = about["documents"]
        verb = "document has" if count == 1 else "documents have"
        yield f"{source}: {count:,} {verb} the id of another, such as {about['example']!r}"


def named_documents(documents: Iterable[Document], _broadcast: Any) -> Iterator[Pair]:
    """(hash of source and own id, both) for each document that has an id of its own."""
    for each in documents:
        if each.name and not _LATER_PIECE.search(each.id):
            yield digest(each.source, each.name), [each.source, each.name]


def all_but_one(key: bytes, values: Iterable[Value]) -> Iterator[Pair]:
    """(a share of a source, [documents that are too many, the id]) of an id that comes again.

    A source has 256 shares, so that its ids are counted by many tasks.
    """
    others = iter(values)
    source, name = next(others)
    if count := sum(1 for _ in others):
        yield f"{key[0]:0{_SHARE}x}{source}", [count, name]


def counted(share: Key, values: Iterable[Value]) -> Iterator[Pair]:
    """(a share of a source, [documents that are too many, the smallest id of these])."""
    others = iter(values)
    total, least = next(others)
    for count, name in others:
        total, least = total + count, min(least, name)
    yield share, [total, least]
