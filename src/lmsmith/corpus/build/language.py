"""Language: identified for each document, filtered by document or by paragraph (py3langid)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from lmsmith.core.config import Fraction, PositiveInt, Problem
from lmsmith.core.errors import needs_extra
from lmsmith.corpus.build.document import Count, Document, Yielded, removed

_VARIETIES = {"yue": "zh", "wuu": "zh", "ary": "ar", "arz": "ar"}
"""Code → that of the language as it is written."""

_SHORTEST = 40
"""Least characters of a paragraph that is identified alone; a shorter one goes with that before."""


@dataclass(frozen=True)
class LanguageConfig:
    """Which languages are kept."""

    enabled: bool = True
    """Whether the language of documents is identified at all."""
    keep: tuple[str, ...] = ()
    """Languages to keep, such as ["en", "zh"] (ISO 639 codes); all if there are none."""
    threshold: Fraction = 0.5
    """A document whose language is less certain than this has none (``und``)."""
    by_paragraph: bool = False
    """Remove the paragraphs of a page that are in other languages than those to keep."""
    characters: PositiveInt = 600
    """Characters of a document that are looked at, from three places of it."""

    def check(self) -> list[Problem]:
        """Names that are no language's."""
        fix = "write its ISO 639 code, such as en or zh"
        found = [
            Problem(f"keep.{number}", name, "not two or three small letters", fix)
            for number, name in enumerate(self.keep)
            if not (len(name) in (2, 3) and name.isascii() and name.islower())
        ]
        if self.by_paragraph and not self.keep:
            expected = "keep names no language"
            found.append(Problem("by_paragraph", True, expected, 'set keep = ["en"]'))
        return found


def known_languages() -> frozenset[str]:
    """The languages that can be kept, by their codes."""
    return frozenset(_VARIETIES.get(name, name) for name in map(str, _identifier().nb_classes))


def identify(
    documents: Iterable[Document], _broadcast: Any, *, config: LanguageConfig
) -> Iterator[Yielded]:
    """Add the language to each document; remove documents and paragraphs in other languages."""
    for each in documents:
        text = each.text
        if config.by_paragraph:
            text, cut = kept_paragraphs(text, config.keep, config.threshold)
            if cut:
                yield Count(each.source, "paragraphs_in_other_languages", cut)
            if not text:
                yield removed(each, "all paragraphs in other languages")
                continue
        language, certainty = language_of(excerpts(text, config.characters))
        if certainty < config.threshold:
            language = "und"
        yield Count(each.source, f"language.{language}")
        found = msgspec.structs.replace(each, text=text, language=language)
        if config.keep and language not in config.keep:
            yield removed(found, f"in another language: {language}")
        else:
            yield found


def excerpts(text: str, characters: int) -> str:
    """The begin, the middle and the end of a long text."""
    if len(text) <= characters:
        return text
    third = characters // 3
    middle = (len(text) - third) // 2
    return "\n".join((text[:third], text[middle : middle + third], text[-third:]))


def kept_paragraphs(text: str, keep: tuple[str, ...], threshold: float) -> tuple[str, int]:
    """The paragraphs (lines) in these languages, and how many others there were."""
    found, cut, keeps = [], 0, True
    for line in text.split("\n"):
        if len(line.strip()) >= _SHORTEST:
            language, certainty = language_of(line)
            keeps = language in keep or certainty < threshold
            cut += not keeps
        if keeps:
            found.append(line)
    return "\n".join(found).strip(), cut


def language_of(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639), and its probability.

    Varieties that are written alike are one language: short texts would have none else.
    """
    found: dict[str, float] = defaultdict(float)
    for name, probability in _identifier().rank(text)[:8]:
        found[_VARIETIES.get(name, str(name))] += float(probability)
    language = max(found, key=lambda name: found[name])
    return language, found[language]


@lru_cache(maxsize=1)
def _identifier() -> Any:
    with needs_extra("corpus"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
