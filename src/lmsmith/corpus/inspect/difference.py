"""What another build of a corpus keeps, removes and changes, and which settings differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmsmith.core.files import read_jsonl
from lmsmith.corpus.build.document import text_hash
from lmsmith.corpus.build.removed import all_removed
from lmsmith.corpus.inspect.documents import CorpusDocuments

NOT_READ = "not among what was read"
"""Reason of a document that a corpus has neither kept nor removed."""


@dataclass(frozen=True)
class Kept:
    """A document that a corpus keeps, for training or held out."""

    source: str
    hash: str
    size: int
    held_out: bool = False


def difference(before: CorpusDocuments, after: CorpusDocuments, limit: int) -> dict[str, Any]:
    """Documents that were added, removed and changed from one corpus to the other.

    Args:
        limit: most documents that are listed of each kind.

    Returns:
        ``added``, ``removed`` and ``changed``: documents and bytes by source, and by reason: why
        the corpus without the document does not have it; ``settings``: those that differ.
    """
    kept = kept_documents(before), kept_documents(after)
    added = kept[1].keys() - kept[0].keys()
    gone = kept[0].keys() - kept[1].keys()
    both = kept[0].keys() & kept[1].keys()
    changed = {id for id in both if kept[0][id].hash != kept[1][id].hash}
    return {
        "before": _about(before, kept[0]),
        "after": _about(after, kept[1]),
        "settings": setting_changes(before.finished.record, after.finished.record),
        "added": _listed(kept[1], added, reasons(before, added), limit),
        "removed": _listed(kept[0], gone, reasons(after, gone), limit),
        "changed": _listed(kept[1], changed, {}, limit),
        "same": len(both) - len(changed),
    }


def kept_documents(corpus: CorpusDocuments) -> dict[str, Kept]:
    """The documents of the shards and the held-out ones, by id."""
    found = {
        id: Kept(part.source, hashed, size)
        for part in corpus.parts
        for id, hashed, size in part.columns("id", "hash", "size")
    }
    for _, row in read_jsonl(corpus.finished.validation):
        text = str(row["text"])
        size = len(text.encode())
        found[str(row["id"])] = Kept(str(row["source"]), text_hash(text), size, held_out=True)
    return found


def reasons(corpus: CorpusDocuments, ids: set[str]) -> dict[str, str]:
    """Step and reason for which a corpus does not have these documents."""
    found = dict.fromkeys(ids, NOT_READ)
    if ids:
        for row in all_removed(corpus.finished):
            if row.id in ids:
                found[row.id] = f"{row.step}: {row.reason}"
    return found


def _about(corpus: CorpusDocuments, kept: Mapping[str, Kept]) -> dict[str, Any]:
    return {
        "corpus": corpus.place,
        "documents": len(kept),
        "bytes": sum(each.size for each in kept.values()),
        "tokens": corpus.tokens,
    }


def _listed(
    kept: Mapping[str, Kept], ids: set[str], why: Mapping[str, str], limit: int
) -> dict[str, Any]:
    sources: dict[str, dict[str, int]] = {}
    by_reason: dict[str, Counter[str]] = {}
    for id in ids:
        each = kept[id]
        about = sources.setdefault(each.source, {"documents": 0, "bytes": 0})
        about["documents"] += 1
        about["bytes"] += each.size
        if id in why:
            reason = ": ".join(why[id].split(": ")[:2])
            by_reason.setdefault(each.source, Counter())[reason] += 1
    return {
        "documents": len(ids),
        "sources": dict(sorted(sources.items())),
        "reasons": {name: dict(found.most_common()) for name, found in sorted(by_reason.items())},
        "first": [
            {"id": id, "source": kept[id].source, "bytes": kept[id].size, "reason": why.get(id, "")}
            for id in sorted(ids)[:limit]
        ],
    }


def setting_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Setting → its values in both corpora, where they differ."""
    one, other = (dict(_flat(record["recipe"], "")) for record in (before, after))
    return {
        name: [one.get(name), other.get(name)]
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.loads(json.dumps(value))
