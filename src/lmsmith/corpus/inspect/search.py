"""Where a phrase is in the texts of a corpus, or a sequence of ids in its tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lmsmith.core.errors import UserError
from lmsmith.corpus.inspect.documents import CorpusDocuments, HeldOut, Part
from lmsmith.corpus.inspect.look import around
from lmsmith.tokenizers import Tokenizer

BLOCK_TOKENS = 1 << 16
"""Tokens that are decoded at a time; a document is never cut."""

CONTEXT_TOKENS = 24
"""Tokens on either side of a hit that are shown."""

_BETWEEN = b"\xff"
"""Stands for a control token: no text has this byte, so that no hit goes over a document's end."""

Places: TypeAlias = NDArray[np.int64]

Finder: TypeAlias = Callable[[Part, int, int], tuple[Places, Places]]
"""``find(part, first token, token after the last)``: of each hit in the part the first token, and
the token after its last."""


@dataclass(frozen=True)
class Hits:
    """All hits counted, and the first ones with their places.

    Attributes:
        held_out: those that are in held-out documents; the others are in the shards.
    """

    by_source: dict[str, dict[str, int]]
    held_out: dict[str, int]
    first: list[tuple[Part, int, int]]

    def count(self, name: str) -> int:
        """``found`` or ``documents`` of all sources."""
        return sum(about[name] for about in self.by_source.values())


def search(
    corpus: CorpusDocuments, phrase: str, limit: int, *, ignore_case: bool, ids: bool
) -> dict[str, Any]:
    """Every place of a phrase, in held-out documents too; the first ``limit`` are listed.

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
    started = time.perf_counter()
    hits = _all(corpus, find, limit)
    seconds = time.perf_counter() - started
    return {
        "corpus": corpus.place,
        "phrase": phrase,
        "tokens": corpus.tokens,
        "bytes": sum(int(corpus.finished.sources[part]["bytes"]) for part in hits.by_source),
        "seconds": round(seconds, 3),
        "found": hits.count("found"),
        "documents": hits.count("documents"),
        "held_out": hits.held_out,
        "sources": hits.by_source,
        "hits": [_row(corpus, *each) for each in hits.first],
    }


def _all(corpus: CorpusDocuments, find: Finder, limit: int) -> Hits:
    by_source: dict[str, dict[str, int]] = {}
    held_out = {"found": 0, "documents": 0}
    first: list[tuple[Part, int, int]] = []
    for part in (*corpus.parts, *corpus.held_out):
        about = by_source.setdefault(part.source, {"found": 0, "documents": 0})
        for start, end in _blocks(part):
            places, stops = find(part, start, end)
            numbers = np.searchsorted(part.offsets, places, "right")
            counts = {"found": len(places), "documents": len(np.unique(numbers))}
            for name, count in counts.items():
                about[name] += count
                held_out[name] += count if isinstance(part, HeldOut) else 0
            more = slice(0, limit - len(first))
            first += [
                (part, *each)
                for each in zip(places[more].tolist(), stops[more].tolist(), strict=True)
            ]
    return Hits(by_source, held_out, first)


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
    pieces = _Pieces(corpus.tokenizer)
    places = _byte_places(phrase, ignore_case)

    def find(part: Part, start: int, end: int) -> tuple[Places, Places]:
        tokens = part.tokens[start:end]
        hits = np.array(list(places(pieces.content(tokens))), np.int64).reshape(-1, 2)
        if not len(hits):
            return hits[:, 0], hits[:, 1]
        ends = np.cumsum(pieces.sizes_v[tokens])
        first = np.searchsorted(ends, hits[:, 0], "right")
        last = np.searchsorted(ends, hits[:, 1] - 1, "right")
        return start + first, start + last + 1

    return find


class _Pieces:
    """The bytes of all tokens of a vocabulary, one after the other.

    Attributes:
        sizes_v: (vocabulary) bytes of each token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [
            _BETWEEN if id in tokenizer.control_tokens else tokenizer.token_bytes(id)
            for id in range(tokenizer.vocabulary_size)
        ]
        self.sizes_v = np.array([len(piece) for piece in pieces], np.int32)
        self._starts_v = np.cumsum(self.sizes_v, dtype=np.int32) - self.sizes_v
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)

    def content(self, tokens: NDArray[Any]) -> bytes:
        """The bytes of tokens."""
        sizes = self.sizes_v[tokens]
        ends = np.cumsum(sizes, dtype=np.int32)
        # From a place in the content to one in the vocabulary, the same for all bytes of a token.
        shifts = self._starts_v[tokens] - (ends - sizes)
        places = np.repeat(shifts, sizes)
        places += np.arange(len(places), dtype=np.int32)
        content: bytes = self._bytes[places].tobytes()
        return content


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
    def find(part: Part, start: int, end: int) -> tuple[Places, Places]:
        block = part.tokens[start:end]
        last = max(0, len(block) - len(wanted) + 1)
        places = np.flatnonzero(block[:last] == wanted[0])
        for number, id in enumerate(wanted[1:], start=1):
            places = places[block[places + number] == id]
        apart, after = [], 0
        for place in places.tolist():
            if place >= after:  # hits do not overlap
                after = place + len(wanted)
                apart.append(start + place)
        found = np.array(apart, np.int64)
        return found, found + len(wanted)

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
        "held_out": isinstance(part, HeldOut),
        "position": None if isinstance(part, HeldOut) else part.start + place,
        "token_in_document": place - first,
        "before": before.lstrip("\ufffd"),
        "text": inside,
        "after": after.rstrip("\ufffd"),
    }
