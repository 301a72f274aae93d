"""Free answers read and compared: extraction, normalisation, exact match, F1, BLEU, ROUGE-L."""

from __future__ import annotations

import functools
import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.corpus.words import HAN
from lmsmith.evaluation.rows import Numbers
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.evaluation.tasks.templates import find_all
from lmsmith.statistics.intervals import Floats

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_KEPT_MARKS = re.compile(
    rf"(?<=\d)[./:](?=\d)|(?<![^\W_{HAN}])(?<![)\]])-(?=\.?\d)|(?<!\w)\.(?=\d)"
)
"""Marks by which numbers differ: a minus, a point, a slash, a colon."""


def extract_answers(texts: Sequence[str], spec: AnswerSpec) -> list[str]:
    """The answer in each text; empty if the rule finds none.

    Raises:
        SlowPattern: the rule takes too long for a text.
    """
    if not spec.extract:
        return [text.strip() for text in texts]
    place = 0 if spec.take == "first" else -1
    found = ([each for each in few if each is not None] for few in find_all(spec.extract, texts))
    return [few[place].strip() if few else "" for few in found]


def normalise_squad(text: str) -> str:
    """Small letters, without marks, articles and extra space (Rajpurkar et al. 2016, section 6.1).

    As MLQA does it for all languages (Lewis et al. 2020): marks of all scripts, a Han character a
    word. Beyond both, wide letters and digits are as narrow ones, a number keeps its minus and its
    point, and if nothing would be left, the text is: the answer "A" is ``a``.
    """
    text = plain_characters(text.lower())
    kept = {found.start() for found in _KEPT_MARKS.finditer(text)}
    marks = [c in string.punctuation or unicodedata.category(c).startswith("P") for c in text]
    bare = "".join(c for n, c in enumerate(text) if n in kept or not marks[n])
    for each in (_ARTICLES.sub(" ", bare), bare, text):
        if words := _WORD.findall(each):
            return " ".join(words)
    return ""


_ALIKE = {
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u2018\u2019"), "'"),
    0x066B: ".", 0xFF0E: ".", 0x066C: ",", 0x2044: "/", 0xFF0F: "/", 0xFF1A: ":",
}  # fmt: skip
"""Minus signs, apostrophes and marks inside numbers of other scripts → ours."""

_SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")

SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
    "万亿": 12, "萬億": 12, "万": 4, "萬": 4, "亿": 8, "億": 8,
}  # fmt: skip
"""Words after a number → the zeros that they stand for."""

_MINUS_AND_SPACE = re.compile(r"(?<![\w)\]])(?<![\w)\]]\s)\u2212\s(?=\d)")
"""The minus of mathematics, which begins no list, may stand off its number, but after nothing."""

_FREE = r"(?<![A-Za-z0-9)\]])"
"""Where a minus is a sign: not after a letter, a digit, or what is in brackets."""

_NUMBER = re.compile(
    rf"""
    (?P<minus>
        {_FREE}-\s?[A-Za-z]{{0,3}}[$]\s?  |  {_FREE}-(?=[.\d])
      | \b(?:minus|negative)\s+[$]?(?=[.\d])  |  [负負]  |  零下
    )?
    (?:
        (?:(?P<units>\d{{1,300}})\s)?
        (?P<top>\d{{1,300}})\s?/\s?(?P<bottom>0*[1-9]\d{{0,300}})(?![\d/]|[.]\d)
      | 10\s?(?:\^|\*\*)\s?\{{?(?P<alone>[+-]?\d{{1,3}})(?!\d)
      |
        (?:
            (?P<whole>
                [1-9]\d{{0,2}}(?P<mark>[, '_])\d{{3}}(?:(?P=mark)\d{{3}})*(?!\d)
              | [1-9]\d?(?:,\d\d)+,\d{{3}}(?!\d)
              | [1-9]\d{{0,2}}(?:[.]\d{{3}})+(?=,\d{{1,2}}(?!\d))
              | [1-9]\d{{0,2}}(?:[.]\d{{3}}){{2,}}(?!\d|[.]\d)
              | \d+
            )
            (?:[.](?P<part>\d+)|,(?P<comma>\d+)(?![\d,]))?
          | (?<![\w.])[.](?P<point>\d+)
        )
        (?:e(?P<exponent>[+-]?\d{{1,3}})(?![a-z\d])
          | \s?(?:[x×*·]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[+-]?\d{{1,3}})(?!\d)
        )?
    )
    (?:\s?(?P<scale>{"|".join(SCALES)}))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Thousands are parted by commas, spaces, apostrophes, underscores or (more than once, or before a
decimal comma) points; a comma before other than three digits is a decimal one."""


def plain_characters(text: str) -> str:
    """A text with wide letters, digits of all scripts, spaces and minus signs as ASCII has them.

    Characters without a width of their own, such as marks of direction, are left out.
    """
    return "".join(map(_plain_character, unicodedata.normalize("NFC", text))).translate(_ALIKE)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category in ("Zs", "Cf"):
        return " " if category == "Zs" else ""
    wide = unicodedata.decomposition(character).startswith(("<wide>", "<narrow>"))
    if wide and category.startswith("L"):
        return unicodedata.normalize("NFKC", character)
    return character


def normalise_number(text: str) -> str:
    """The text's first number in its shortest form, exactly; empty if there is none.

    A fraction without an end is ``1/3``. Signs of currencies and of per cent do not count.
    """
    found = _NUMBER.search(_plain_numbers(text))
    if found is None:
        return ""
    zeros = SCALES[found["scale"].lower()] if found["scale"] else 0
    if found["bottom"]:
        value = Fraction(int(found["top"]), int(found["bottom"])) + int(found["units"] or 0)
        shortest = _shortest_fraction(value * 10**zeros)
    else:
        whole = "1" if found["alone"] else re.sub(r"\D", "", found["whole"] or "")
        rest = found["part"] or found["comma"] or found["point"] or ""
        exponent = int(found["exponent"] or found["power"] or found["alone"] or 0)
        shortest = _shortest_decimal(whole, rest, exponent + zeros)
    return f"-{shortest}" if found["minus"] and shortest != "0" else shortest


def _plain_numbers(text: str) -> str:
    """Currencies as $, fractions and powers in a line, LaTeX's as others write them."""
    parts: list[str] = []
    for character in text:
        if unicodedata.category(character) == "Sc":
            character = "$"
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            gap = " " if parts and parts[-1].isdecimal() else ""
            character = gap + unicodedata.normalize("NFKC", character)
        parts.append(character)
    text = _MINUS_AND_SPACE.sub("-", "".join(parts))
    text = plain_characters(text)
    text = re.sub("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: f"^{power[0].translate(_SUPERSCRIPTS)}", text)
    text = re.sub(r"(?<=\d)，(?=\d{3}(?!\d))", ",", text)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\$", "$")
    text = re.sub(r"(?<=\d)(?=\\[dt]?frac)", " ", text)
    return re.sub(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)


def _shortest_decimal(whole: str, rest: str, exponent: int) -> str:
    """Digits before and after the point, and zeros more, without those that mean nothing.

    By the digits, since a model may write more of them than Python converts.
    """
    digits, point = whole + rest, len(whole) + exponent
    if point < 0:
        digits, point = "0" * -point + digits, 0
    digits = digits.ljust(point, "0")
    before, after = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    return f"{before}.{after}" if after else before


def _shortest_fraction(value: Fraction) -> str:
    """A decimal where it ends, else numerator and denominator in lowest terms."""
    left, places = value.denominator, {2: 0, 5: 0}
    for prime in places:
        while left % prime == 0:
            left //= prime
            places[prime] += 1
    if left > 1:
        return f"{value.numerator}/{value.denominator}"
    count = max(places.values())
    return _shortest_decimal(str(value.numerator * 10**count // value.denominator), "", -count)


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

    2 · common / (words of the answer + words of the gold), SQuAD's normalisation on both (ibid.).
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


_HAN = re.compile(f"[{HAN}]")

ORDERS = 4
"""BLEU counts n-grams of up to so many tokens."""


def bleu_statistics(answer: str, references: Sequence[str]) -> list[float | None]:
    """The summands of an answer in a corpus's BLEU (Papineni et al. 2002, section 2).

    By sacrebleu with its 13a tokenisation, case kept (Post 2018); a Han character is a token, as
    in its tokenisation of Chinese. Raises UserError if sacrebleu is not installed.

    Returns:
        The answer's tokens, those of the nearest reference, n-grams in common for n from 1 to 4,
        and n-grams of the answer.
    """
    # Spaces round Han characters, which none part.
    given, *right = [_HAN.sub(r" \g<0> ", text) for text in (answer, *references)]
    score = _bleu().sentence_score(given, right)
    return [float(x) for x in (score.sys_len, score.ref_len, *score.counts, *score.totals)]


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """sacrebleu's BLEU of a corpus, from 0 to 100, and its signature, which says all its settings
    (Post 2018): 13a tokenisation, case kept, one reference an answer.

    Raises:
        UserError: sacrebleu is not installed.
    """
    metric = _library("sacrebleu", "BLEU").BLEU()
    score = metric.corpus_score(list(answers), [list(references)])
    return float(score.score), str(metric.get_signature())


def bleu_of_sums(sums_rs: Floats) -> Floats:
    """BLEU of corpora, from 0 to 100, from their summed `bleu_statistics`, (corpora, numbers).

    100 · min(1, exp(1 − r/c)) · (p₁p₂p₃p₄)^¼, p the shares of n-grams in common. As sacrebleu does,
    the k-th order without a match counts as 2⁻ᵏ matches, and a corpus without any is 0.
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
    characters, each a word. Raises UserError if rouge-score is not installed.
    """
    found = _rouge().score_multi(list(references), answer)
    return float(found["rougeL"].fmeasure)


OVERLAPS: Mapping[str, Callable[[str, Sequence[str]], Numbers]] = {
    "bleu": bleu_statistics,
    "rouge_l": rouge_l,
}
"""Measure → an item's number, or numbers that are added up."""


class _Words:
    """rouge-score's own words, and Han characters."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(f"[a-z0-9]+|[{HAN}]", text.lower())


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
