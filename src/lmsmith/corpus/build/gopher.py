"""Gopher's rules of quality, by name (Rae et al. 2021, section A.1 and table A1).

A rule is a measure of a text with its bounds. Words are parted by white space here; a text of a
script without spaces is measured by its characters, and rules about words as such leave it alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lmsmith.core.config import Fraction, Problem
from lmsmith.corpus.build.document import Count, Document, Yielded, removed
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.build.repetition import DUPLICATE_GRAMS, TOP_GRAMS, Measures, repetition
from lmsmith.corpus.build.white_space import count_words
from lmsmith.corpus.words import Places, read_words

Bounds: TypeAlias = tuple[float, float]

_BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*")
_ELLIPSES = ("...", "…")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class GopherConfig:
    """Bounds of Gopher's rules; the bounds on repetition are those of its table A1."""

    enabled: bool = False
    """Apply the rules."""
    drop: tuple[str, ...] = ()
    """Names of rules that are not applied."""
    least_words: Annotated[int, Meta(ge=0)] = 50
    """A shorter document is removed."""
    most_words: Annotated[int, Meta(ge=1)] = 100_000
    """A longer document is removed."""
    shortest_mean_word: Annotated[float, Meta(ge=0)] = 3
    """Least mean of the characters of a word."""
    longest_mean_word: Annotated[float, Meta(gt=0)] = 10
    """Largest mean of the characters of a word."""
    most_symbols: Annotated[float, Meta(ge=0)] = 0.1
    """Most hash signs for each word; the same for ellipses."""
    most_bullets: Fraction = 0.9
    """Largest share of lines that begin with a bullet."""
    most_ellipsis_lines: Fraction = 0.3
    """Largest share of lines that end with an ellipsis."""
    least_alphabetic: Fraction = 0.8
    """Least share of words with a letter."""
    least_stop_words: Annotated[int, Meta(ge=0, le=8)] = 2
    """Different words of the, be, to, of, and, that, have, with that a text of English has."""
    most_duplicate_lines: Fraction = 0.3
    """Largest share of lines that repeat one before; the same for paragraphs."""
    most_duplicate_line_characters: Fraction = 0.2
    """Largest share of characters in such lines; the same for paragraphs."""

    def bounds(self) -> dict[str, Bounds]:
        """Rule → least and largest value of its measure, without the dropped rules."""
        infinite = float("inf")
        bounds: dict[str, Bounds] = {
            "words": (self.least_words, self.most_words),
            "mean word length": (self.shortest_mean_word, self.longest_mean_word),
            "hash signs": (0, self.most_symbols),
            "ellipses": (0, self.most_symbols),
            "bullet lines": (0, self.most_bullets),
            "ellipsis lines": (0, self.most_ellipsis_lines),
            "alphabetic words": (self.least_alphabetic, 1),
            "stop words": (self.least_stop_words, infinite),
            "duplicate lines": (0, self.most_duplicate_lines),
            "duplicate paragraphs": (0, self.most_duplicate_lines),
            "duplicate line characters": (0, self.most_duplicate_line_characters),
            "duplicate paragraph characters": (0, self.most_duplicate_line_characters),
        }
        bounds |= {f"top {n}-grams": (0, most) for n, most in TOP_GRAMS.items()}
        bounds |= {f"duplicate {n}-grams": (0, most) for n, most in DUPLICATE_GRAMS.items()}
        return {name: each for name, each in bounds.items() if name not in self.drop}

    def check(self) -> list[Problem]:
        """A name in ``drop`` that is no rule's."""
        known = tuple(replace(self, drop=()).bounds())
        return [
            Problem(f"drop.{number}", name, "no rule's name", f"the rules: {', '.join(known)}")
            for number, name in enumerate(self.drop)
            if name not in known
        ]


RULES = tuple(GopherConfig().bounds())
"""Names of Gopher's rules."""


def broken_rules(
    texts: Sequence[str], languages: Sequence[str], bounds: Mapping[str, Bounds]
) -> list[dict[str, float]]:
    """The rules that each text breaks, with the value of the measure.

    Args:
        texts: of documents.
        languages: ISO 639-1 code of each; the stop words are asked of English and of unknown ones.
        bounds: rule → least and largest value.
    """
    if not texts:  # a group of curated documents alone
        return []
    measured = gopher_measures(texts, languages)
    broken: list[dict[str, float]] = [{} for _ in texts]
    for name, (least, most) in bounds.items():
        values = measured[name]
        for place in np.flatnonzero((values < least) | (values > most)).tolist():
            broken[place][name] = float(values[place])
    return broken


def gopher_measures(texts: Sequence[str], languages: Sequence[str]) -> Measures:
    """Rule → (texts) its measure; NaN, which breaks no bound, where it does not apply."""
    counts = count_words(texts)
    spaced_t = 2 * counts.unspaced_t < counts.characters_t
    count_t = np.where(spaced_t, counts.words_t, counts.unspaced_t)
    english_t = np.array([language in ("", "en") for language in languages]) & spaced_t
    rows = [_line_measures(text) for text in texts]
    by_lines = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    with_letter_t = counts.words_t - counts.without_letter_t
    return {
        "words": count_t.astype(np.float64),
        "mean word length": np.where(spaced_t, _shares(counts.characters_t, count_t), np.nan),
        "hash signs": _shares(np.array([text.count("#") for text in texts]), count_t),
        "ellipses": _shares(np.array([_ellipses(text) for text in texts]), count_t),
        "alphabetic words": np.where(spaced_t, _shares(with_letter_t, count_t), np.nan),
        "stop words": np.where(english_t, counts.stop_words_t, np.nan),
        **by_lines,
        **repetition(read_words(texts)),
    }


def _line_measures(text: str) -> dict[str, float]:
    """Measures of a text's lines and paragraphs."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    paragraphs = [part for part in map(str.strip, _PARAGRAPHS.split(text)) if part]
    line_share, line_characters = _repeats(lines)
    paragraph_share, paragraph_characters = _repeats(paragraphs)
    return {
        "bullet lines": _share(sum(line.startswith(_BULLETS) for line in lines), len(lines)),
        "ellipsis lines": _share(sum(line.endswith(_ELLIPSES) for line in lines), len(lines)),
        "duplicate lines": line_share,
        "duplicate paragraphs": paragraph_share,
        "duplicate line characters": line_characters,
        "duplicate paragraph characters": paragraph_characters,
    }


def _ellipses(text: str) -> int:
    return sum(map(text.count, _ELLIPSES))


def _shares(part_t: Places, whole_t: Places) -> NDArray[np.float64]:
    return np.where(whole_t > 0, part_t / np.maximum(1, whole_t), 0.0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _repeats(parts: Sequence[str]) -> tuple[float, float]:
    """Share of the parts that repeat one before, and of the characters in them."""
    again = [(count - 1, len(part)) for part, count in Counter(parts).items() if count > 1]
    characters = sum(count * size for count, size in again)
    return _share(sum(count for count, _ in again), len(parts)), _share(
        characters, sum(map(len, parts))
    )


def apply_gopher(
    documents: Iterable[Document], curated: Sequence[str], config: GopherConfig
) -> Iterator[Yielded]:
    """The documents that break no rule; what each rule alone would remove is counted."""
    bounds = config.bounds()
    for both in groups(documents):
        yield from (document for document in both if document.source in curated)
        group = [document for document in both if document.source not in curated]
        if not group:
            continue
        languages = [document.language for document in group]
        found = broken_rules([document.text for document in group], languages, bounds)
        for document, broken in zip(group, found, strict=True):
            for name in broken:
                yield Count(document.source, f"breaks {name}")
            if broken:
                name, value = next(iter(broken.items()))
                yield removed(document, f"{name}: {value:.3g}")
            else:
                yield document
