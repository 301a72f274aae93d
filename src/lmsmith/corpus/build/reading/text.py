"""Plain text: its encoding, whether it is text at all, and long texts cut into documents."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from lmsmith.core.errors import needs_extra
from lmsmith.core.text import encodable
from lmsmith.corpus.build.reading.opening import Unreadable

SAMPLE = 1 << 20
"""Bytes by which a file's encoding is decided."""

_BLOCK = 1 << 20
_DETECTED = 1 << 14

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_KINDS = (
    (b"PK\x03\x04", "a ZIP archive, no text"),
    (b"%PDF-", "a PDF, no text"),
    (b"\x89PNG", "an image, no text"),
    (b"\xff\xd8\xff", "an image, no text"),
    (b"GIF8", "an image, no text"),
    (b"\x7fELF", "a program, no text"),
    (b"7z\xbc\xaf", "a 7z archive, no text"),
    (b"Rar!", "a RAR archive, no text"),
    (b"\x1f\x8b", "a gzip file in another, no text"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file in another, no text"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"\xfd7zXZ", "an xz file: unpack it first"),
    (b"SQLite format", "a database, no text"),
)

_WIDE = ("utf-16", "utf-32")
"""Encodings in which most texts have zero bytes."""

_NO_TEXT = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape"))
"""What Python calls encodings and no text is written in."""

_CONTROL = bytes(each for each in range(32) if each not in b"\t\n\v\f\r\x1a\x1b")


def encoding_of(sample: bytes) -> str:
    """The encoding of a text whose first bytes are these.

    Raises:
        Unreadable: it is no text.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    for magic, kind in _KINDS:
        if sample.startswith(magic):
            raise Unreadable(kind)
    if len(sample.translate(None, _CONTROL)) < 0.98 * len(sample):
        if (found := _wide(sample)) is not None:
            return found
        raise Unreadable("binary, no text")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError:
        return _detected(sample)


def is_wide(encoding: str) -> bool:
    """Whether a line end is more than one byte."""
    return encoding.startswith(_WIDE)


def _wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: most bytes of western text are zero, in a pattern."""
    for start, name in ((0, "utf-32-le"), (3, "utf-32-be")):
        letters = sample[start::4]
        others = len(sample) - len(letters) - (sample.count(0) - letters.count(0))
        if len(sample) >= 8 and not others and letters.count(0) < len(letters) // 4:
            return name
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = sample[start::2].count(0), sample[1 - start :: 2].count(0)
        if zeros > 0.6 * len(sample[start::2]) and not others:
            return name
    return None


def _detected(sample: bytes) -> str:
    """UTF-8 with a few broken bytes, or the encoding that charset-normalizer finds."""
    text = sample.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    if 10 * broken < sum(not character.isascii() for character in text) - broken:
        return "utf-8"
    with needs_extra("corpus"):
        from charset_normalizer import from_bytes
    start = next((place for place, byte in enumerate(sample) if byte > 127), 0)
    start = max(0, start - _DETECTED // 2)
    found = from_bytes(sample[start : start + _DETECTED]).best()
    return found.encoding if found is not None else "cp1252"


def decoded(file: BinaryIO) -> Iterator[str]:
    """The blocks of a text file, in the encoding that its beginning shows.

    Bytes that the encoding does not know become U+FFFD.

    Raises:
        Unreadable: it is empty or no text.
    """
    sample = file.read(SAMPLE)
    if not sample:
        raise Unreadable("an empty file")
    decoder = codecs.getincrementaldecoder(encoding_of(sample))("replace")
    yield decoder.decode(sample)
    while block := file.read(_BLOCK):
        yield decoder.decode(block)
    if rest := decoder.decode(b"", final=True):
        yield rest


def decoded_bytes(content: bytes) -> str:
    """A whole text in the encoding that its beginning shows.

    Raises:
        Unreadable: it is no text.
    """
    return content.decode(encoding_of(content[:SAMPLE]), "replace")


def declared_text(content: bytes, *names: str) -> str:
    """A whole text in the first of these encodings that fits, else in the one that its beginning
    shows.

    Args:
        names: what a header or the page itself declares; empty ones, and those that no text has,
            are passed over.

    Raises:
        Unreadable: it is no text.
    """
    for name in filter(None, names):
        with contextlib.suppress(LookupError, ValueError):
            found = codecs.lookup(name)
            narrow = found.name.startswith(_WIDE) and b"\0" not in content
            if found._is_text_encoding and found.name not in _NO_TEXT and not narrow:
                return encodable(content.decode(name))  # UTF-7 has lone surrogates
    return decoded_bytes(content)


def pieces(blocks: Iterator[str], most: int) -> Iterator[str]:
    """A text in pieces of at most ``most`` characters, holding no more than a few of them.

    Raises:
        Unreadable: after the pieces before it, where the text ends in a fault.
    """
    held, fault = "", None
    try:
        for block in blocks:
            held += block
            start = 0
            while len(held) - start > most:
                end = _cut(held, start, start + most)
                if piece := held[start:end]:
                    yield piece
                start = end
            held = held[start:]
    except Unreadable as error:
        fault = error
    if held:
        yield held
    if fault is not None:
        raise fault


def _cut(text: str, start: int, stop: int) -> int:
    """Where to cut before ``stop``: after a paragraph, else a line, else a word."""
    half = start + (stop - start) // 2
    for mark in ("\n\n", "\n", " "):
        place = text.rfind(mark, half, stop)
        if place >= 0:
            return place + len(mark)
    return stop
