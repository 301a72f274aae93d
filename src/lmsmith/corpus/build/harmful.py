"""Harmful text removed by a list of words or phrases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from lmsmith.core.config import PositiveInt
from lmsmith.corpus.build.document import Document, Yielded, removed


@dataclass(frozen=True)
class HarmfulConfig:
    """Documents that are removed for their words."""

    words: str = ""
    """A text file with a word or phrase a line; no file removes nothing."""
    max_found: PositiveInt = 3
    """A document with so many of them, the same one counted again, is removed."""


def remove_harmful(
    documents: Iterable[Document], words: tuple[str, ...], *, most: int
) -> Iterator[Yielded]:
    """The documents with fewer than ``most`` of the words, whatever their case."""
    pattern = _pattern(words)
    for each in documents:
        found = [match[0].casefold() for match in pattern.finditer(each.text)]
        if len(found) >= most:
            yield removed(each, f"harmful words: {', '.join(sorted(set(found))[:5])}")
        else:
            yield each


def read_words(text: str) -> tuple[str, ...]:
    """The words of a file, without empty lines and comments (``# …``)."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(sorted({line for line in lines if line and not line.startswith("#")}))


@lru_cache(maxsize=2)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Whole words where they are of letters with space between; parts of text in Chinese."""
    parts = []
    for word in sorted(words, key=len, reverse=True):
        escaped = re.escape(word)
        left = r"(?<!\w)" if word[0].isascii() else ""
        right = r"(?!\w)" if word[-1].isascii() else ""
        parts.append(f"{left}{escaped}{right}")
    return re.compile("|".join(parts), re.IGNORECASE)
