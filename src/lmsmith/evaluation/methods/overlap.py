"""How much of a reference an answer has: BLEU by sacrebleu, ROUGE-L by rouge-score."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.answers import HAN

Floats = NDArray[np.float64]

_HAN = re.compile(f"[{HAN}]")
_ROUGE_WORD = re.compile(f"[a-z0-9]+|[{HAN}]")

ORDERS = 4
"""BLEU counts n-grams of up to so many tokens."""


def bleu_statistics(answer: str, references: Sequence[str]) -> list[float]:
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


OVERLAPS: Mapping[str, Callable[[str, Sequence[str]], float | list[float]]] = {
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
