"""Free answers read and compared: extraction, normalisation, exact match and F1."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lmsmith.evaluation.methods.numbers import normalise_number, plain_characters
from lmsmith.evaluation.tasks.spec import AnswerSpec

_ARTICLES = re.compile(r"\b(a|an|the)\b")

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and kana, which no spaces part: each is a word."""

_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_KEPT_MARKS = re.compile(
    rf"(?<=\d)[./:](?=\d)|(?<![^\W_{HAN}])(?<![)\]])-(?=\.?\d)|(?<!\w)\.(?=\d)"
)
"""Marks by which numbers differ: a minus, a point, a slash, a colon."""


def extract_answer(text: str, spec: AnswerSpec) -> str:
    """The part of a text that is the answer; empty if the rule finds none."""
    if not spec.extract:
        return text.strip()
    found = [match for match in re.finditer(spec.extract, text) if match[1] is not None]
    if not found:
        return ""
    return found[0 if spec.take == "first" else -1][1].strip()


def normalise_squad(text: str) -> str:
    """Small letters, without marks, articles and extra space (Rajpurkar et al. 2016, section 6.1).

    As MLQA does it for all languages (Lewis et al. 2020): marks of all scripts, a Han character a
    word. Beyond both, wide letters and digits are as narrow ones, a number keeps its minus and its
    point, and what would leave nothing is left: the answer "A" is ``a``.
    """
    text = plain_characters(text.lower())
    kept = {found.start() for found in _KEPT_MARKS.finditer(text)}
    bare = "".join(c for n, c in enumerate(text) if n in kept or not _is_mark(c))
    for each in (_ARTICLES.sub(" ", bare), bare, text):
        if words := _WORD.findall(each):
            return " ".join(words)
    return ""


def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


NORMALISERS: Mapping[str, Callable[[str], str]] = {
    "text": str.strip,
    "squad": normalise_squad,
    "number": normalise_number,
}


def exact_match(answer: str, golds: Sequence[str], normalise: Callable[[str], str]) -> float:
    """1 if the answer is one of the right ones once both are normalised; nothing is never right."""
    given = normalise(answer)
    return float(bool(given) and given in {normalise(gold) for gold in golds})


def word_f1(answer: str, golds: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, against the best of the right answers.

    2 · common / (words of the answer + words of the gold), SQuAD's normalisation on both (Rajpurkar
    et al. 2016, section 6.1).
    """
    given = normalise_squad(answer).split()
    best = 0.0
    for gold in golds:
        right = normalise_squad(gold).split()
        common = sum((Counter(given) & Counter(right)).values())
        if common:
            best = max(best, 2 * common / (len(given) + len(right)))
    return best


def vote(answers: Sequence[str], normalise: Callable[[str], str]) -> str:
    """The commonest answer, empty ones left out; of equally common ones the first.

    Self-consistency (Wang et al. 2022, section 2): the answer is summed over the ways to it.
    """
    counts = Counter(normal for answer in answers if (normal := normalise(answer)))
    if not counts:
        return ""
    best = max(counts.values())
    return next(answer for answer in answers if counts.get(normalise(answer)) == best)
