"""Where a phrase is in the texts of a corpus, or a sequence of ids in its tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.corpus.inspect.documents import CorpusDocuments, Part
from lmsmith.corpus.inspect.look import around

BLOCK_TOKENS = 1 << 20
"""Tokens that are decoded at a time; a document is never cut."""

CONTEXT_TOKENS = 24
"""Tokens on either side of a hit that are shown."""

_BETWEEN = b"\xff"
"""Stands for a control token: no text has this byte, so that no hit goes over a document's end."""

Finder: TypeAlias = Callable[[Part, int, int], Iterator[tuple[int, int]]]
"""``find(part, first token, last token)``: the places of hits in the part, as tokens."""


@dataclass(frozen=True)
class Hits:
    """All hits counted, and the first ones with their places."""

    found: int
    documents: int
    by_source: dict[str, dict[str, int]]
    first: list[tuple[Part, int, int]]


def search(
    corpus: CorpusDocuments, phrase: str, limit: int, *, ignore_case: bool, ids: bool
) -> dict[str, Any]:
    """Every place of a phrase; the first ``limit`` are listed.

    Args:
        ids: the phrase is token ids, such as ``"17 402"``.

    Raises:
        UserError: an empty phrase, or no ids.
    """
    if ids:
        wanted = _as_ids(corpus, phrase)
        find = _id_finder(wanted)
    else:
        if not phrase:
            raise UserError("the phrase is empty", "Write the words to search for.")
        find = _text_finder(corpus, phrase, ignore_case)
    hits = _all(corpus, find, limit)
    return {
        "corpus": str(corpus.finished.folder.parent),
        "phrase": phrase,
        "tokens": corpus.tokens,
        "found": hits.found,
        "documents": hits.documents,
        "sources": hits.by_source,
        "hits": [_row(corpus, *each) for each in hits.first],
    }


def _all(corpus: CorpusDocuments, find: Finder, limit: int) -> Hits:
    found, documents = 0, 0
    by_source: dict[str, dict[str, int]] = {}
    first: list[tuple[Part, int, int]] = []
    for part in corpus.parts:
        last = -1
        about = by_source.setdefault(part.source, {"found": 0, "documents": 0})
        for start, end in _blocks(part):
            for place, stop in find(part, start, end):
                found += 1
                about["found"] += 1
                document = part.document_at(part.start + place)
                if document != last:
                    last = document
                    documents += 1
                    about["documents"] += 1
                if len(first) < limit:
                    first.append((part, place, stop))
    return Hits(found, documents, by_source, first)


def _blocks(part: Part) -> Iterator[tuple[int, int]]:
    """Ranges of tokens, each of whole documents."""
    start, total = 0, int(part.offsets[-1])
    while start < total:
        first = part.document_at(part.start + start)
        last = int(np.searchsorted(part.offsets, start + BLOCK_TOKENS, "right")) - 1
        end = int(part.offsets[max(first + 1, last)])
        yield start, end
        start = end


def _text_finder(corpus: CorpusDocuments, phrase: str, ignore_case: bool) -> Finder:
    tokenizer = corpus.tokenizer
    pieces = [
        _BETWEEN if id in tokenizer.control_tokens else tokenizer.token_bytes(id)
        for id in range(tokenizer.vocabulary_size)
    ]
    places = _byte_places(phrase, ignore_case)

    def find(part: Part, start: int, end: int) -> Iterator[tuple[int, int]]:
        block = [pieces[id] for id in part.tokens[start:end].tolist()]
        content = b"".join(block)
        ends: list[int] = []
        for first, last in places(content):
            if not ends:
                ends = list(accumulate(map(len, block)))
            yield start + _token_of(ends, first), start + _token_of(ends, last - 1) + 1

    return find


def _token_of(ends: list[int], byte: int) -> int:
    """The token that a byte is of."""
    return bisect_right(ends, byte)


def _byte_places(phrase: str, ignore_case: bool) -> Callable[[bytes], Iterator[tuple[int, int]]]:
    """Finds (first byte, byte after the last) of each place, which do not overlap."""
    if ignore_case and not phrase.isascii():
        pattern = re.compile(re.escape(phrase), re.IGNORECASE)

        def by_characters(content: bytes) -> Iterator[tuple[int, int]]:
            text = content.decode("utf-8", "surrogateescape")
            bytes_before, before = 0, 0
            for match in pattern.finditer(text):
                bytes_before += len(text[before : match.start()].encode("utf-8", "surrogateescape"))
                size = len(match[0].encode("utf-8", "surrogateescape"))
                yield bytes_before, bytes_before + size
                before = match.start()

        return by_characters
    wanted = phrase.encode("utf-8", "surrogateescape")
    wanted = wanted.lower() if ignore_case else wanted

    def by_bytes(content: bytes) -> Iterator[tuple[int, int]]:
        content = content.lower() if ignore_case else content
        place = content.find(wanted)
        while place >= 0:
            yield place, place + len(wanted)
            place = content.find(wanted, place + len(wanted))

    return by_bytes


def _as_ids(corpus: CorpusDocuments, phrase: str) -> list[int]:
    size = corpus.tokenizer.vocabulary_size
    words = phrase.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) < size for word in words):
        fix = f'Write ids from 0 to {size - 1:,} with spaces between them, such as "17 402".'
        raise UserError(f"{phrase!r} is not a sequence of token ids", fix)
    return [int(word) for word in words]


def _id_finder(wanted: list[int]) -> Finder:
    def find(part: Part, start: int, end: int) -> Iterator[tuple[int, int]]:
        block = part.tokens[start:end]
        last = max(0, len(block) - len(wanted) + 1)
        places = np.flatnonzero(block[:last] == wanted[0])
        for number, id in enumerate(wanted[1:], start=1):
            places = places[block[places + number] == id]
        after = 0
        for place in places.tolist():
            if place >= after:  # hits do not overlap
                after = place + len(wanted)
                yield start + place, start + after

    return find


def _row(corpus: CorpusDocuments, part: Part, place: int, stop: int) -> dict[str, Any]:
    number = part.document_at(part.start + place)
    row = part.row(number)
    first, last = int(part.offsets[number]), int(part.offsets[number + 1])
    start, end = max(first, place - CONTEXT_TOKENS), min(last, stop + CONTEXT_TOKENS)

    ids = part.tokens[start:end].tolist()
    before, inside, after = around(corpus.tokenizer, ids, place - start, stop - start)
    return {
        "id": row["id"],
        "source": part.source,
        "name": row["name"],
        "position": part.start + place,
        "token_in_document": place - first,
        "before": before.lstrip("\ufffd"),
        "text": inside,
        "after": after.rstrip("\ufffd"),
    }
