"""A document on its way through the builder, and what steps report beside the documents."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import msgspec

EXCERPT_CHARACTERS = 240
"""Characters of a removed document that the report keeps."""


class Document(msgspec.Struct, frozen=True):
    """A text and where it is from.

    Attributes:
        id: unique in the corpus and stable: source, path, and the place in that file.
        source: name of the recipe's table.
        name: the file's own id, URL or title of it; empty if there is none.
        language: ISO 639-1 code; empty before the language is identified.
        scores: name → value that a step added, such as the quality classifier's.
    """

    id: str
    source: str
    text: str
    name: str = ""
    language: str = ""
    scores: dict[str, float] = {}

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


class Removed(msgspec.Struct, frozen=True):
    """A document, a file or a row that a step removed, and why.

    Attributes:
        reason: a few words that group equal reasons; details follow after ``": "``.
        excerpt: how the text began, for the report.
        size: bytes of the text, 0 for a file or row that could not be read.
        language: that of the document.
    """

    id: str
    source: str
    step: str
    reason: str
    excerpt: str = ""
    size: int = 0
    language: str = ""


class Unread(Removed, frozen=True):
    """A file that the system could not read: the next build tries it again."""


class Count(msgspec.Struct, frozen=True):
    """A figure of a step that is added up over all documents of a source."""

    source: str
    name: str
    value: float = 1


Yielded: TypeAlias = Document | Removed | Count
"""What the function of a step yields."""


def removed(document: Document, reason: str, step: str = "") -> Removed:
    """The record of a removed document; the engine fills in ``step`` where it is empty."""
    excerpt = document.text[:EXCERPT_CHARACTERS]
    return Removed(
        document.id, document.source, step, reason, excerpt, document.size, document.language
    )


def digest(*parts: str | bytes | int) -> bytes:
    """16 bytes (BLAKE2b) that stand for the parts, the same on every machine."""
    content = b""
    for part in parts:
        each = part if isinstance(part, bytes) else str(part).encode("utf-8", "backslashreplace")
        content += len(each).to_bytes(8, "little") + each
    return hashlib.blake2b(content, digest_size=16).digest()


def text_hash(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return digest(text).hex()[:16]


def point(seed: int, step: str, id: str) -> float:
    """A number in [0, 1) drawn for a document: a hash of seed, step and id, of 53 bits.

    All chance of the builder comes from here, so that order, workers and engine change nothing.
    """
    return (int.from_bytes(digest(seed, step, id)[:8], "big") >> 11) / 2**53
