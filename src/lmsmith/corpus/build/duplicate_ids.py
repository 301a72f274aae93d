"""Rows of the inputs that bear the id of another row: a sign of files that were copied or joined.

The builder makes each document's id from its source, file and place, so it keeps all such rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmsmith.corpus.build.document import Document, digest
from lmsmith.corpus.build.engine import Data, Engine, Key, Pair, Value

_LATER_PIECE = re.compile(r"#\d+$")
"""Ends the ids of all but the first document of a long text."""


def find_duplicate_ids(engine: Engine, data: Data) -> dict[str, dict[str, Any]]:
    """Source → ``documents`` with an id that an earlier one has, and an ``example`` of these ids.

    Args:
        data: a checkpoint of what was read.
    """
    named = engine.pairs(data, "ids-named", named_documents)
    again = engine.reduce(named, "ids-again", all_but_one)
    return {
        str(source): {"documents": documents, "example": example}
        for source, [documents, example] in engine.collect(
            engine.reduce(again, "ids-counted", counted)
        )
    }


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


def all_but_one(_key: Key, values: Sequence[Value]) -> Iterable[Pair]:
    """(source, [documents that are too many, the id]) of an id that comes more than once."""
    source, name = values[0]
    return [(source, [len(values) - 1, name])] if len(values) > 1 else []


def counted(source: Key, values: Sequence[Value]) -> Iterable[Pair]:
    """(source, [documents that are too many, the smallest id of these])."""
    return [(source, [sum(count for count, _ in values), min(name for _, name in values)])]
