"""What a model sees around a position: decoded tokens, and the documents that they are of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lmsmith.corpus.inspect.documents import CorpusDocuments, Part
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Seen:
    """The part of a document that is in the window.

    Attributes:
        number: of the document in its part.
        start, end: positions in the corpus.
        ids: its tokens in the window.
    """

    part: Part
    number: int
    start: int
    end: int
    ids: list[int]


def look(corpus: CorpusDocuments, at: int, tokens: int) -> dict[str, Any]:
    """The tokens around a position.

    Args:
        at: position in the corpus.
        tokens: size of the window.

    Returns:
        ``documents``: a row for each document in the window, with ``before``, ``token`` and
        ``after`` as texts where the position is in it, and ``text`` elsewhere.

    Raises:
        UserError: the position is outside the corpus.
    """
    corpus.part_at(at)
    start = max(0, at - tokens // 2)
    end = min(corpus.tokens, max(at + 1, start + tokens))
    return {
        "corpus": corpus.place,
        "tokens": corpus.tokens,
        "at": at,
        "start": start,
        "end": end,
        "documents": [_row(corpus, each, at) for each in window(corpus, start, end)],
    }


def window(corpus: CorpusDocuments, start: int, end: int) -> Iterable[Seen]:
    """The documents between two positions, cut at them."""
    while start < end:
        part = corpus.part_at(start)
        number = part.document_at(start)
        first = part.start + int(part.offsets[number])
        stop = min(end, part.start + int(part.offsets[number + 1]))
        ids = part.ids(number)[start - first : stop - first]
        yield Seen(part, number, start, stop, ids)
        start = stop


def _row(corpus: CorpusDocuments, seen: Seen, at: int) -> dict[str, Any]:
    row = seen.part.row(seen.number)
    first = seen.part.start + int(seen.part.offsets[seen.number])
    about = {
        "id": row["id"],
        "source": seen.part.source,
        "name": row["name"],
        "language": row["language"],
        "scores": row["scores"],
        "bytes": row["size"],
        "position": first,
        "tokens": int(seen.part.offsets[seen.number + 1] - seen.part.offsets[seen.number]),
        "start": seen.start,
        "end": seen.end,
        "ids": seen.ids,
    }
    if not seen.start <= at < seen.end:
        return {**about, "text": written(corpus.tokenizer, seen.ids).decode(errors="replace")}
    before, token, after = around(corpus.tokenizer, seen.ids, at - seen.start, at - seen.start + 1)
    return {**about, "before": before, "token": token, "after": after}


def written(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The bytes of tokens; control tokens are written as they are named."""
    names = tokenizer.control_tokens
    pieces = (names[id].encode() if id in names else tokenizer.token_bytes(id) for id in ids)
    return b"".join(pieces)


def around(tokenizer: Tokenizer, ids: list[int], first: int, last: int) -> tuple[str, str, str]:
    """The text before some of the tokens, of them, and after them.

    A character that they have a part of is theirs.

    Args:
        first, last: places of the first of these tokens, and after the last.
    """
    content = written(tokenizer, ids)
    start, end = (len(written(tokenizer, ids[:place])) for place in (first, last))
    while 0 < start < len(content) and content[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(content) and content[end] & 0xC0 == 0x80:
        end += 1
    parts = content[:start], content[start:end], content[end:]
    before, inside, after = (part.decode(errors="replace") for part in parts)
    return before, inside, after
