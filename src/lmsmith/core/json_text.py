"""JSON from outside: values are counted before any is made, so that none takes absurd memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from lmsmith.core.text import encodable_json

if TYPE_CHECKING:  # it is slow to import, and only large texts need it
    import numpy as np
    from numpy.typing import NDArray

TIMES, FREE = 9, 96 << 20
"""Bytes that the values of a text may take: so many times its size, and so many more."""

_BLOCK = 1 << 20
_SIGNS = (b"[", b"{", b",", b":", b'"')

_ARRAY, _OBJECT, _TEXT, _NUMBER, _ITEM, _KEY = 100, 192, 56, 32, 9, 25
"""Bytes of each in CPython; the last two are places in an array and in an object."""

_FIRST_KEYS = 5
"""Keys of an object that its size includes; rows share their texts."""

_ROW = 64
"""Bytes of a row besides its values, at least."""


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
    if texts + _most_bytes_of(content) <= most:
        return
    if (found := texts + _bytes_of(signs_outside_strings(content))) > most:
        problem = f"its values would take {found >> 20:,} MiB of memory"
        raise msgspec.DecodeError(f"{problem}, {found // len(content)} times its size")


class KeptRows:
    """Bounds the memory of all rows of a file that are kept together.

    Args:
        size: of the file in bytes.
        row: bytes that its reader keeps of each row besides its values.
    """

    def __init__(self, size: int, row: int = _ROW) -> None:
        self._most, self._row, self._found = FREE + TIMES * size, row, 0

    def add(self, content: bytes) -> None:
        """Count a row's JSON; a msgspec.DecodeError once all would take far more than the file."""
        texts = len(content) if content.isascii() else 4 * len(content)
        found = texts + _most_bytes_of(content)
        if found > TIMES * len(content):
            found = texts + _bytes_of(signs_outside_strings(content))
        self._found += found + self._row
        if self._found > self._most:
            raise msgspec.DecodeError(f"the rows would take more than {self._most >> 20:,} MiB")


def list_items(content: bytes) -> Iterator[bytes]:
    """The texts of the items of a JSON list, one after the other; nothing is made of them.

    Raises:
        msgspec.DecodeError: it is no list, or does not end.
    """
    begin = content.find(b"[")
    if begin < 0 or content[:begin].strip():
        raise msgspec.DecodeError("no list")
    start, is_first = begin + 1, True
    for end, is_last in _ends_of_items(content):
        item = content[start:end].strip()
        start = end + 1
        if item or not is_last or not is_first:
            yield item
        is_first = False
        if is_last:
            break
    else:
        raise msgspec.DecodeError("the list does not end")
    if content[start:].strip():
        raise msgspec.DecodeError("something follows the list")


def _ends_of_items(content: bytes) -> Iterator[tuple[int, bool]]:
    """The place after each item of a list, and whether it is the list's end."""
    import numpy as np

    depth = 0
    for start, block, outside in _outside_strings(content):
        opens = ((block == ord("[")) | (block == ord("{"))) & outside
        closes = ((block == ord("]")) | (block == ord("}"))) & outside
        depths = depth + np.cumsum(opens.astype(np.int8) - closes, dtype=np.int64)
        depth = int(depths[-1])
        found = (outside & (block == ord(",")) & (depths == 1)) | (closes & (depths <= 0))
        for at in np.flatnonzero(found).tolist():
            yield start + at, bool(depths[at] <= 0)


def _outside_strings(content: bytes) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.bool_]]]:
    """Blocks of a text: where each begins, its bytes, and which stand outside of strings."""
    import numpy as np

    # Of the same length, and every quote begins or ends a string.
    plain = content.replace(rb"\\", b"__").replace(rb"\"", b"__")
    inside = 0
    for start in range(0, len(plain), _BLOCK):
        block = np.frombuffer(plain, np.uint8, min(_BLOCK, len(plain) - start), start)
        quotes = np.cumsum(block == ord('"'))
        yield start, block, (quotes + inside) % 2 == 0
        inside = int((quotes[-1] + inside) % 2)


def signs_outside_strings(content: bytes) -> dict[bytes, int]:
    """How often each sign of JSON stands outside of a text's strings, and its quotes."""
    import numpy as np

    counts = dict.fromkeys(_SIGNS, 0)
    for _, block, outside in _outside_strings(content):
        plain = block[outside]
        for sign in _SIGNS[:-1]:
            counts[sign] += int(np.count_nonzero(plain == ord(sign)))
        counts[b'"'] += int(np.count_nonzero(block == ord('"')))
    return counts


def _most_bytes_of(content: bytes) -> int:
    """An upper bound of `_bytes_of` that is found fast: what stands in strings is counted too."""
    arrays, objects, commas, keys, quotes = (content.count(sign) for sign in _SIGNS)
    return (
        _ARRAY * arrays
        + _OBJECT * objects
        + _TEXT * (quotes // 2)
        + _NUMBER * (1 + commas)
        + _ITEM * commas
        + _KEY * keys
    )


def _bytes_of(signs: Mapping[bytes, int]) -> int:
    """Most bytes that values take, besides the characters of strings."""
    arrays, objects, commas, keys, quotes = (signs[sign] for sign in _SIGNS)
    texts = max(0, quotes // 2 - keys)
    more_keys = max(0, keys - _FIRST_KEYS * objects)
    return (
        _ARRAY * arrays
        + _OBJECT * objects
        + _TEXT * texts
        + _NUMBER * max(0, 1 + commas - texts)
        + _ITEM * commas
        + (_KEY + _TEXT) * more_keys
    )
