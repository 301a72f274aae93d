"""Words of many texts at once: as hashes and places in NumPy arrays, and hashes of words in a row.

A word is a run of letters, digits and the marks on them, in small letters. Everything else parts
words, as in the published 13-grams of GPT-3 ("i m going", "the u s government"). In scripts without
spaces between words, each character is a word.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]
Places: TypeAlias = NDArray[np.int64]

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and kana, which no spaces part: each is a word."""
UNSPACED = HAN + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""The same with Thai, Lao, Burmese and Khmer."""

PIECE = 1 << 17
"""Characters hashed at once, so that the arrays stay in the cache. A longer word is cut."""

_APART, _INSIDE, _ALONE = 0, 1, 2
_LAST = 0x40000
"""Code points from here on belong to no word."""
_LAST_CASED = 0x1F000
_BASE = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0xD1342543DE82EF95)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Words:
    """The words of some texts, one after the other.

    Attributes:
        hashes_w: 64-bit hash of each word.
        starts_w, ends_w: its place in the texts, in characters, as if they were joined by one
            character.
        first_t: (texts + 1) number of each text's first word; the last is the number of words.
        offset_t: (texts) place of each text's first character.
    """

    hashes_w: Hashes
    starts_w: Places
    ends_w: Places
    first_t: Places
    offset_t: Places


def read_words(texts: Sequence[str]) -> Words:
    """The words of texts; the same word has the same hash everywhere, on every machine.

    The hash is a polynomial in the code points modulo 2^64, read from one running sum.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    offset_t = np.cumsum(lengths) - lengths
    parts = [_words_of(*piece) for piece in _pieces("\n".join(texts) + "\n")]
    hashes_w, starts_w, ends_w = map(np.concatenate, zip(*parts, strict=True))
    first_t = np.append(np.searchsorted(starts_w, offset_t), len(starts_w)).astype(np.int64)
    return Words(hashes_w, starts_w, ends_w, first_t, offset_t)


def normal_words(text: str) -> list[str]:
    """The words of a text, as strings."""
    found: list[str] = []
    for _, codes, kinds in _pieces(text):
        small = _text_of(codes)
        starts, ends = _edges(kinds)
        found += [small[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return found


def gram_hashes(words: Words, n: int, whole_if_shorter: bool = False) -> tuple[Hashes, Places]:
    """Hashes of every n words in a row that are of one text.

    Args:
        words: of the texts.
        n: number of words.
        whole_if_shorter: whether a text of fewer words has one hash, that of all its words.

    Returns:
        The hashes in order, and (texts + 1) the number of each text's first one.
    """
    hashes_w, first_t = words.hashes_w, words.first_t
    if whole_if_shorter:
        hashes_w, first_t = _filled(hashes_w, first_t, n)
    count_t = np.diff(first_t)
    first_gram_t = np.concatenate(([0], np.cumsum(np.maximum(count_t - n + 1, 0))))
    windows = len(hashes_w) - n + 1
    if windows <= 0:
        return np.zeros(0, np.uint64), first_gram_t
    total = hashes_w[:windows].copy()
    for place in range(1, n):
        total *= _STEP
        total += hashes_w[place : place + windows]
    inside = np.ones(len(hashes_w), bool)
    last = first_t[1:, None] - np.arange(1, n)
    inside[last[last >= first_t[:-1, None]]] = False
    total = total[inside[:windows]]
    total ^= total >> np.uint64(32)
    total *= _MIX
    total ^= total >> np.uint64(29)
    return total, first_gram_t


def _filled(hashes_w: Hashes, first_t: Places, n: int) -> tuple[Hashes, Places]:
    """Words with zeros after those of each text that has some but fewer than n."""
    count_t = np.diff(first_t)
    missing_t = np.where(count_t > 0, np.maximum(n - count_t, 0), 0)
    if not missing_t.any():
        return hashes_w, first_t
    filled = np.insert(hashes_w, np.repeat(first_t[1:], missing_t), np.uint64(0))
    return filled, np.concatenate(([0], np.cumsum(count_t + missing_t)))


def batches(texts: Sequence[str], most: int = 1 << 22) -> Iterator[slice]:
    """Slices of texts that have together so many characters at most, or are one text."""
    start = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > most:
            yield slice(start, place)
            start, size = place, 0
        size += len(text) + 1
    if start < len(texts):
        yield slice(start, len(texts))


Codes: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint32]"
Kinds: TypeAlias = NDArray[np.uint8]


def _pieces(text: str) -> Iterator[tuple[int, Codes, Kinds]]:
    """Where each piece starts, its code points in small letters, and the kind of each.

    A piece ends after a character that is inside no word, so that the words do not depend on where
    a text begins; a word longer than a piece is cut at every so many of its characters.
    """
    start = 0
    while start < len(text):
        codes = _small(text[start : start + PIECE])
        kinds = _kinds()[codes]
        if start + len(codes) < len(text):
            apart = np.flatnonzero(kinds != _INSIDE)
            size = int(apart[-1]) + 1 if len(apart) else len(codes)
            codes, kinds = codes[:size], kinds[:size]
        yield start, codes, kinds
        start += len(codes)


def _words_of(start: int, codes: Codes, kinds: Kinds) -> tuple[Hashes, Places, Places]:
    """Hashes, starts and ends of a piece's words."""
    starts, ends = _edges(kinds)
    size = len(codes)
    value = codes.astype(np.uint64)
    value += np.uint64(1)
    value *= _powers()[:size]
    sums = np.zeros(size + 1, np.uint64)
    np.cumsum(value, out=sums[1:])
    hashes = sums[ends] - sums[starts]
    hashes *= _powers()[PIECE - starts]
    return hashes, starts + start, ends + start


def _edges(kinds: Kinds) -> tuple[Places, Places]:
    """First place of each word, and the one after its last."""
    inside = kinds == _INSIDE
    starts, ends = inside.copy(), inside.copy()
    starts[1:] &= ~inside[:-1]
    ends[:-1] &= ~inside[1:]
    alone = kinds == _ALONE
    if alone.any():
        starts |= alone
        ends |= alone
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def _small(text: str) -> Codes:
    """Code points in small letters, as many as the text has."""
    if text.isascii():
        return np.frombuffer(text.lower().encode("ascii"), np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _small_letters()[codes]


def _text_of(codes: Codes) -> str:
    return codes.astype(np.uint32).tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def _powers() -> Hashes:
    return np.multiply.accumulate(np.concatenate((np.ones(1, np.uint64), np.full(PIECE, _BASE))))


@functools.cache
def _kinds() -> Kinds:
    """The kind of each code point: apart from words, inside one, or a word alone."""
    kinds = np.zeros(0x110000, np.uint8)
    characters = "".join(map(chr, range(_LAST)))
    for run in re.finditer(r"[^\W_]+", characters):
        kinds[run.start() : run.end()] = _INSIDE
    for run in re.finditer(r"\W+", characters[:_LAST_CASED]):
        marks = [c for c in run.group() if unicodedata.category(c)[0] == "M"]
        kinds[list(map(ord, marks))] = _INSIDE
    for run in re.finditer(f"[{UNSPACED}]+", characters):
        part = kinds[run.start() : run.end()]
        part[part == _INSIDE] = _ALONE
    return kinds


@functools.cache
def _small_letters() -> NDArray[np.uint32]:
    """The small letter of each code point; always one character, so that places stay."""
    small = np.arange(0x110000, dtype=np.uint32)
    for code in range(_LAST_CASED):
        lowered = chr(code).lower()
        if len(lowered) == 1:
            small[code] = ord(lowered)
    small[ord("İ")], small[ord("ς")] = ord("i"), ord("σ")
    return small
