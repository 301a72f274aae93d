"""Figures of a finished corpus: documents, tokens, bytes, languages and scripts by source."""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lmsmith.corpus.build.document import digest
from lmsmith.corpus.build.removed import DUPLICATES, all_removed
from lmsmith.corpus.inspect.documents import CorpusDocuments, Part

SAMPLED = 400
"""Documents of a source whose letters are counted."""

SAMPLED_TOKENS = 2048
"""Tokens of each of these documents, its first."""

QUANTILES = {"least": 0.0, "median": 0.5, "p90": 0.9, "most": 1.0}


def statistics(corpus: CorpusDocuments) -> dict[str, Any]:
    """Figures by source; the letters' scripts are those of a sample drawn by a hash of the ids.

    Returns:
        ``sources``: name → documents, bytes, tokens, ``bytes_per_token``, quantiles of
        ``tokens_per_document``, ``languages`` (documents), ``scripts`` (shares of the letters),
        ``scores`` (mean of each), ``duplicates`` (step → language → documents removed).
        ``vocabulary``: size of the tokenizer's, and how many of its
        tokens the corpus uses.
    """
    sources: dict[str, list[Part]] = {}
    for part in corpus.parts:
        sources.setdefault(part.source, []).append(part)
    doubles = duplicates(corpus)
    size = corpus.tokenizer.vocabulary_size
    counts = np.zeros(size, np.int64)
    for part in corpus.parts:
        for start in range(0, len(part.tokens), 1 << 22):
            counts += np.bincount(part.tokens[start : start + (1 << 22)], minlength=size)[:size]
    return {
        "corpus": corpus.place,
        "tokens": corpus.tokens,
        "held_out": corpus.finished.record["validation_documents"],
        "sources": {
            name: {**_source(corpus, parts), "duplicates": doubles.get(name, {})}
            for name, parts in sources.items()
        },
        "vocabulary": {"size": size, "used": int(np.count_nonzero(counts))},
    }


def _source(corpus: CorpusDocuments, parts: Sequence[Part]) -> dict[str, Any]:
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    languages: Counter[str] = Counter()
    scores: dict[str, list[float]] = {}
    size = 0
    for part in parts:
        for language, of_bytes, score in part.columns("language", "size", "scores"):
            languages[language] += 1
            size += of_bytes
            for name, value in msgspec.json.decode(score).items() if score != "{}" else ():
                total = scores.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + value, total[1] + 1
    tokens = int(lengths.sum())
    return {
        "documents": len(lengths),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens if tokens else None,
        "tokens_per_document": _quantiles(lengths),
        "languages": {name: count for name, count in languages.most_common() if name},
        "scripts": scripts(sampled_texts(corpus, parts)),
        "scores": {name: total / count for name, (total, count) in scores.items()},
    }


def duplicates(corpus: CorpusDocuments) -> dict[str, dict[str, dict[str, int]]]:
    """Source → step → language → documents that were removed as another's duplicates."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for row in all_removed(corpus.finished):
        if row.step in DUPLICATES:
            steps = found.setdefault(row.source, {})
            steps.setdefault(row.step, Counter())[row.language or "und"] += 1
    return {
        source: {step: dict(counts.most_common()) for step, counts in sorted(steps.items())}
        for source, steps in found.items()
    }


def _quantiles(lengths: NDArray[np.int64]) -> dict[str, float]:
    if not len(lengths):
        return {}
    return {name: float(np.quantile(lengths, share)) for name, share in QUANTILES.items()}


def drawn(parts: Sequence[Part], name: str, count: int) -> list[tuple[Part, int]]:
    """Documents drawn by a hash of their ids: the same whatever their order."""
    numbered = (
        (digest(name, id), id, place, number)
        for place, part in enumerate(parts)
        for number, (id,) in enumerate(part.columns("id"))
    )
    return [(parts[place], number) for *_, place, number in heapq.nsmallest(count, numbered)]


def sampled_texts(corpus: CorpusDocuments, parts: Sequence[Part]) -> Iterator[str]:
    """The beginnings of some documents."""
    for part, number in drawn(parts, "scripts", SAMPLED):
        yield corpus.text(part, number, SAMPLED_TOKENS)


def scripts(texts: Iterator[str]) -> dict[str, float]:
    """Script → share of the letters, the largest first."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    found: Counter[str] = Counter()
    for letter, count in letters.items():
        if name := script_of(letter):
            found[name] += count
    total = found.total()
    return {name: count / total for name, count in found.most_common()}


@lru_cache(maxsize=1 << 14)
def script_of(letter: str) -> str:
    """The script of a letter by its name in Unicode, such as Latin; empty for other characters."""
    if not unicodedata.category(letter).startswith("L"):
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}.get(name, name.capitalize())
