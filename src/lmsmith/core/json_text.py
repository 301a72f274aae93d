"""JSON from outside: values are counted before any is made, so that none takes absurd memory."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from lmsmith.core.text import encodable_json

TIMES, FREE = 9, 96 << 20
"""Bytes that the values of a text may take: so many times its size, and so many more."""

_BLOCK = 1 << 20
_SIGNS = (b"[", b"{", b",", b":", b'"')

_ARRAY, _OBJECT, _TEXT, _NUMBER, _ITEM, _KEY = 100, 192, 56, 32, 9, 25
"""Bytes of each in CPython; the last two are places in an array and in an object."""


def decode_json(content: bytes, decoder: msgspec.json.Decoder[object] | None = None) -> object:
    """The value of a JSON text; half a surrogate pair in a string becomes U+FFFD.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        msgspec.DecodeError: it is not JSON, or its values would take far more memory than it does
            (``[],`` is 3 bytes and becomes 72).
        RecursionError: it is nested too deeply.
    """
    content.decode("utf-8")
    refuse_swelling(content)
    decoder = decoder or msgspec.json.Decoder()
    try:
        return decoder.decode(content)
    except msgspec.DecodeError:
        text = content.decode("utf-8")
        fixed = encodable_json(text)
        if fixed == text:
            raise
        return decoder.decode(fixed)


def refuse_swelling(content: bytes) -> None:
    """A msgspec.DecodeError for JSON whose values would take far more memory than its text."""
    most = FREE + TIMES * len(content)
    if 25 * len(content) <= FREE:  # even arrays in arrays take no more
        return
    widest = 1 if content.isascii() else 4 if re.search(rb"[\xf0-\xf4]", content) else 2
    texts = widest * len(content)
    if texts + _bytes_of({sign: content.count(sign) for sign in _SIGNS}) <= most:
        return  # what stands in strings was counted too
    if (found := texts + _bytes_of(signs_outside_strings(content))) > most:
        problem = f"its values would take {found >> 20:,} MiB of memory"
        raise msgspec.DecodeError(f"{problem}, {found // len(content)} times its size")


def signs_outside_strings(content: bytes) -> dict[bytes, int]:
    """How often each sign of JSON stands outside of a text's strings, and its quotes."""
    import numpy as np  # here: it is slow to import, and only large texts need it

    plain = content.replace(rb"\\", b"").replace(rb"\"", b"")  # a quote is now a string's end
    counts = dict.fromkeys(_SIGNS, 0)
    inside = 0
    for start in range(0, len(plain), _BLOCK):
        block = np.frombuffer(plain, np.uint8, min(_BLOCK, len(plain) - start), start)
        quotes = np.cumsum(block == ord('"'))
        outside = block[(quotes + inside) % 2 == 0]
        for sign in _SIGNS[:-1]:
            counts[sign] += int(np.count_nonzero(outside == ord(sign)))
        inside += int(quotes[-1])
    counts[b'"'] = inside
    return counts


def _bytes_of(signs: Mapping[bytes, int]) -> int:
    """Most bytes that values take, besides the characters of strings."""
    arrays, objects, commas, keys, quotes = (signs[sign] for sign in _SIGNS)
    strings = quotes // 2
    return (
        _ARRAY * arrays
        + _OBJECT * objects
        + _TEXT * strings
        + _NUMBER * max(0, 1 + commas - strings + keys)
        + _ITEM * commas
        + _KEY * keys
    )
