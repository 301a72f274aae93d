"""Words between white space, of many texts at once: how many, how long, which have no letter.

Gopher's rules count words so; `lmsmith.corpus.words` has those of letters and digits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsmith.corpus.words import UNSPACED, Places

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's: a text of English has at least two of them."""

_SPACE, _LETTER, _UNSPACED = 1, 2, 4
_LAST = 0x40000
"""Code points from here on are neither space nor letter."""
_SMALL = 32
"""The bit that a small letter of ASCII has, and the large one has not."""


@dataclass(frozen=True)
class WordCounts:
    """Figures of each text.

    Attributes:
        words_t: words.
        characters_t: characters of all words.
        without_letter_t: words without a letter.
        unspaced_t: characters of scripts without spaces between words.
        stop_words_t: different words of `STOP_WORDS`.
    """

    words_t: Places
    characters_t: Places
    without_letter_t: Places
    unspaced_t: Places
    stop_words_t: Places


def count_words(texts: Sequence[str]) -> WordCounts:
    """The figures of texts."""
    joined = "\n".join(texts) + "\n"
    if joined.isascii():
        codes: NDArray[Any] = np.frombuffer(joined.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    inside = (kinds & _SPACE) == 0
    edges = np.flatnonzero(np.diff(inside, prepend=False))  # the last character is a space
    starts, ends = edges[::2], edges[1::2]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    offset_t = np.cumsum(lengths) - lengths
    first_t = np.append(np.searchsorted(starts, offset_t), len(starts))
    letters_w: NDArray[Any] = np.zeros(0, np.uint8)
    if len(starts):
        letters_w = np.bitwise_or.reduceat(kinds, starts) & _LETTER
    unspaced_t = np.zeros(len(texts), np.int64)
    if codes.dtype != np.uint8 and len(texts):
        unspaced_t = np.add.reduceat(kinds >= _UNSPACED, offset_t, dtype=np.int64)
    return WordCounts(
        np.diff(first_t),
        _sums(ends - starts, first_t),
        _sums(letters_w == 0, first_t),
        unspaced_t,
        _stop_words(codes, starts, ends - starts, first_t),
    )


def _sums(values_w: NDArray[Any], first_t: Places) -> Places:
    """(texts) the sum over the words of each text."""
    until: Places = np.append(0, np.cumsum(values_w, dtype=np.int64))
    sums: Places = until[first_t[1:]] - until[first_t[:-1]]
    return sums


def _stop_words(codes: NDArray[Any], starts: Places, sizes_w: Places, first_t: Places) -> Places:
    """(texts) different stop words; a word is one number of 16 bits a letter."""
    found_t = np.zeros(len(first_t) - 1, np.int64)
    for size in sorted({len(word) for word in STOP_WORDS}):
        places = np.flatnonzero(sizes_w == size)
        packed = np.zeros(len(places), np.uint64)
        for letter in range(size):
            code = codes[starts[places] + letter].astype(np.uint64) | np.uint64(_SMALL)
            packed = (packed << np.uint64(16)) | code
        for word in STOP_WORDS:
            if len(word) == size:
                hits = np.zeros(len(sizes_w), bool)
                hits[places] = packed == _packed(word)
                found_t += _sums(hits, first_t) > 0
    return found_t


def _packed(word: str) -> np.uint64:
    return np.uint64(int.from_bytes(word.encode("utf-16-be"), "big"))


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """What each code point is: white space, a letter, of a script without spaces."""
    kinds = np.zeros(0x110000, np.uint8)
    characters = "".join(map(chr, range(_LAST)))
    for pattern, kind in ((r"\s+", _SPACE), (r"[^\W\d_]+", _LETTER), (f"[{UNSPACED}]+", _UNSPACED)):
        for run in re.finditer(pattern, characters):
            kinds[run.start() : run.end()] |= kind
    return kinds
