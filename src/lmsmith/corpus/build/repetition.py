"""Repetition within a text: runs of words that come often or again (Rae et al. 2021, A.1)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lmsmith.corpus.words import Hashes, Places, Words

TOP_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
"""n → most characters, as a share, in the most frequent run of n words (Gopher, table A1)."""
DUPLICATE_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""n → most characters, as a share, in repetitions of a run of n words (Gopher, table A1)."""

Measures: TypeAlias = dict[str, NDArray[np.float64]]

_STEP, _TEXT = np.uint64(0xD1342543DE82EF95), np.uint64(0x9E6C63D0876A9A99)


def repetition(words: Words) -> Measures:
    """Shares of the characters of words that are in frequent and in repeated runs of words.

    A run is repeated where it comes again; each of its characters counts once, in however many
    repetitions it is. The most frequent run is the longest of those that come equally often, and
    twice at least. A run that comes twice begins with a shorter one that does, so that fewer are
    left for each number of words.
    """
    count_t = np.diff(words.first_t)
    text_w = np.repeat(np.arange(len(count_t)), count_t)
    end_w = words.first_t[1:][text_w]
    until = np.concatenate(([0], np.cumsum(words.ends_w - words.starts_w)))
    total_t = np.maximum(1, until[words.first_t[1:]] - until[words.first_t[:-1]])
    begins = np.arange(len(text_w))
    runs = words.hashes_w + (text_w.astype(np.uint64) + np.uint64(1)) * _TEXT
    measured: Measures = {}
    for n in range(2, max(DUPLICATE_GRAMS) + 1):
        inside = begins + n <= end_w[begins]
        begins, runs = begins[inside], runs[inside]
        runs = runs * _STEP + words.hashes_w[begins + n - 1]
        begins, runs, first, times = _that_come_twice(begins, runs)
        if n in TOP_GRAMS:
            sizes = times * (until[first + n] - until[first])
            part_t = _top(text_w[first], times, sizes, len(count_t))
            measured[f"top {n}-grams"] = np.minimum(1, part_t / total_t)
        else:
            again = np.sort(begins[begins != np.repeat(first, times)])
            measured[f"duplicate {n}-grams"] = (
                _covered(again, n, until, text_w, len(count_t)) / total_t
            )
    return measured


def _that_come_twice(begins: Places, runs: Hashes) -> tuple[Places, Hashes, Places, Places]:
    """The runs that come at least twice, equal ones together.

    Returns:
        Place and hash of each; for each different run its first place, and how often it comes.
    """
    perhaps = _perhaps_twice(runs)
    begins, runs = begins[perhaps], runs[perhaps]
    order = _order(runs)
    begins, runs = begins[order], runs[order]
    groups_r = np.flatnonzero(np.append(True, runs[1:] != runs[:-1])[: len(runs)])
    times = np.diff(np.append(groups_r, len(runs)))
    kept = np.repeat(times > 1, times)
    begins, runs, times = begins[kept], runs[kept], times[times > 1]
    starts = np.cumsum(times) - times
    first = np.minimum.reduceat(begins, starts) if len(starts) else starts
    return begins, runs, first, times


def _perhaps_twice(runs: Hashes) -> Places:
    """Places of the runs whose first bits come twice: few others are left to sort."""
    bits = np.uint64(len(runs).bit_length() + 2)
    begin = (runs >> (np.uint64(64) - bits)).astype(np.int64)
    return np.flatnonzero(np.bincount(begin)[begin] > 1)


def _order(runs: Hashes) -> Places:
    """An order in which equal runs stand together: that of their first bits.

    The place is written into the last bits, since to sort numbers is faster than to sort places.
    """
    bits = np.uint64(max(1, len(runs)).bit_length())
    last = (np.uint64(1) << bits) - np.uint64(1)
    ordered = np.sort((runs & ~last) | np.arange(len(runs), dtype=np.uint64))
    return (ordered & last).astype(np.int64)


def _top(text_r: Places, times: Places, sizes: Places, texts: int) -> Places:
    """(texts) characters of all of the most frequent run of each text.

    Args:
        text_r: text of each run that comes twice.
        times: how often it comes.
        sizes: characters of all of them.
        texts: number of texts.
    """
    order = np.lexsort((sizes, times, text_r))
    top = np.zeros(texts, np.int64)
    top[text_r[order]] = sizes[order]  # the last of a text stays
    return top


def _covered(again: Places, n: int, until: Places, text_w: Places, texts: int) -> Places:
    """(texts) characters of the words that are in a run that comes again.

    Args:
        again: number of the first word of each such run, in order.
        n: words of a run.
        until: (words + 1) characters of the words before.
        text_w: text of each word.
        texts: number of texts.
    """
    begin = again.copy()
    begin[1:] = np.maximum(begin[1:], again[:-1] + n)  # what the run before covers counts once
    sizes = until[again + n] - until[begin]
    return np.bincount(text_w[again], sizes, texts).astype(np.int64)
