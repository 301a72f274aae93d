"""Harmful text removed: by a list of words or phrases, and by the score of a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from lmsmith.core.config import Fraction, PositiveInt, Problem
from lmsmith.corpus.build.document import Document, Yielded, removed
from lmsmith.corpus.build.groups import groups

SCORE = "harmful"
"""Name of the score in `Document.scores`."""


class Scorer(Protocol):
    """A classifier of texts; picklable, with a fingerprint for `engine.identity`."""

    @property
    def key(self) -> str: ...

    def scores(self, texts: Sequence[str]) -> Any:
        """The probability that each text is harmful; that of a text does not depend on others."""


@dataclass(frozen=True)
class HarmfulConfig:
    """Documents that are removed for their words, or for what a classifier says of them."""

    words: str = ""
    """A text file with a word or phrase a line; no file removes nothing."""
    max_found: PositiveInt = 3
    """A document with so many of them, the same one counted again, is removed."""
    classifier: str = ""
    """A classifier that `lmsmith finetune` made: its run, folder or registered name. A document's
    score is the largest of its pieces, each of as many characters as the classifier reads."""
    label: str = ""
    """The classifier's label whose probability is the score; its last one by default."""
    examples: tuple[str, ...] = ()
    """Files and folders of harmful texts, as a source's ``paths``. With ``harmless`` they train a
    classifier by words, as that of ``quality.classifier``, in the place of a fine-tuned one."""
    harmless: tuple[str, ...] = ()
    """Files and folders of harmless texts."""
    threshold: Fraction = 0.5
    """A document with at least this score is removed; each that stays keeps its score."""

    def check(self) -> list[Problem]:
        """Two classifiers, examples of one kind alone, a label of no classifier."""
        problems = []
        if bool(self.examples) != bool(self.harmless):
            key = "harmless" if self.examples else "examples"
            fix = "name texts of both kinds, some ten at least"
            problems.append(Problem(key, [], "a classifier learns from both kinds", fix))
        if self.examples and self.classifier:
            expected = "examples train a classifier, and one is named"
            problems.append(Problem("classifier", self.classifier, expected, "leave one out"))
        if self.label and not self.classifier:
            expected, fix = "a label of the classifier", "name the classifier, or leave it out"
            problems.append(Problem("label", self.label, expected, fix))
        return problems


_SCORED = 1 << 16
"""Characters that a classifier scores at a time: some seconds of a large one."""


def remove_by_score(
    documents: Iterable[Document], scorer: Scorer, *, threshold: float
) -> Iterator[Yielded]:
    """The documents of a lower score, with their score."""
    for group in groups(documents, _SCORED):
        scores = scorer.scores([document.text for document in group])
        for document, score in zip(group, scores, strict=True):
            score = round(float(score), 6)
            if score >= threshold:
                yield removed(document, f"harmful: score {score:.3f}")
            else:
                yield msgspec.structs.replace(document, scores=document.scores | {SCORE: score})


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
