"""Free answers read and compared: extraction, normalisation, exact match, F1, BLEU and ROUGE-L."""

from __future__ import annotations

import functools
import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.numbers import normalise_number, plain_characters
from lmsmith.evaluation.rows import Numbers
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


Floats = NDArray[np.float64]

_HAN = re.compile(f"[{HAN}]")
_ROUGE_WORD = re.compile(f"[a-z0-9]+|[{HAN}]")

ORDERS = 4
"""BLEU counts n-grams of up to so many tokens."""


def bleu_statistics(answer: str, references: Sequence[str]) -> list[float | None]:
    """What an answer adds to a corpus's BLEU (Papineni et al. 2002, section 2).

    By sacrebleu with its 13a tokenisation, case kept (Post 2018); a Han character is a token, as
    in its tokenisation of Chinese.

    Returns:
        The answer's tokens, those of the nearest reference, n-grams in common for n from 1 to 4,
        and n-grams of the answer.

    Raises:
        UserError: sacrebleu is not installed.
    """
    score = _bleu().sentence_score(_parted(answer), [_parted(each) for each in references])
    return [float(x) for x in (score.sys_len, score.ref_len, *score.counts, *score.totals)]


def bleu_of_sums(sums_rs: Floats) -> Floats:
    """BLEU of corpora, from 0 to 100, their answers' statistics added up.

    100 · min(1, exp(1 − r/c)) · (p₁p₂p₃p₄)^¼, p the shares of n-grams in common. As sacrebleu does,
    the k-th order without a match counts as 2⁻ᵏ matches, and a corpus without any is 0.

    Args:
        sums_rs: (corpora, numbers of `bleu_statistics`).
    """
    lengths, references = sums_rs[:, 0], sums_rs[:, 1]
    counts, totals = sums_rs[:, 2 : 2 + ORDERS], sums_rs[:, 2 + ORDERS :]
    smoothed = np.where(counts > 0, counts, 0.5 ** np.cumsum(counts == 0, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = smoothed / totals
        brevity = np.exp(np.minimum(0.0, 1.0 - references / lengths))
        scores = 100.0 * brevity * np.exp(np.log(shares).mean(axis=1))
    some = (counts > 0).any(axis=1) & (totals > 0).all(axis=1)
    return np.where(some, scores, 0.0)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L's F-measure, the best of the references (Lin 2004, section 3).

    2PR / (P + R), P and R the longest common subsequence of words as a share of the answer's and
    the reference's; by rouge-score: small letters a to z and digits, no stemming, and Han
    characters, each a word.

    Raises:
        UserError: rouge-score is not installed.
    """
    found = _rouge().score_multi(list(references), answer)
    return float(found["rougeL"].fmeasure)


OVERLAPS: Mapping[str, Callable[[str, Sequence[str]], Numbers]] = {
    "bleu": bleu_statistics,
    "rouge_l": rouge_l,
}
"""Measure → an item's number, or numbers that are added up."""


def _parted(text: str) -> str:
    """The text with spaces round Han characters, which none part."""
    return _HAN.sub(r" \g<0> ", text)


class _Words:
    """rouge-score's own words, and Han characters."""

    def tokenize(self, text: str) -> list[str]:
        return _ROUGE_WORD.findall(text.lower())


@functools.cache
def _bleu() -> Any:
    return _library("sacrebleu", "BLEU").BLEU(effective_order=True)


@functools.cache
def _rouge() -> Any:
    return _library("rouge_score.rouge_scorer", "ROUGE-L").RougeScorer(
        ["rougeL"], tokenizer=_Words()
    )


def _library(name: str, measure: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(
            f"{measure} is measured by {package}, which is not installed",
            "pip install 'lmsmith[eval]'; or choose another: --measure f1",
        ) from error
