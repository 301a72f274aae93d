"""Free answers read and compared: extraction, normalisation, exact match and F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lmsmith.evaluation.tasks.spec import AnswerSpec

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*|-?\.\d+")


def extract_answer(text: str, spec: AnswerSpec) -> str:
    """The part of a text that is the answer; empty if the rule finds none."""
    if not spec.extract:
        return text.strip()
    found = [match for match in re.finditer(spec.extract, text) if match[1] is not None]
    if not found:
        return ""
    return found[0 if spec.take == "first" else -1][1].strip()


def normalise_squad(text: str) -> str:
    """Lower case, without marks, articles and extra space (Rajpurkar et al. 2016, section 6.1)."""
    text = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def normalise_number(text: str) -> str:
    """The text's first number in its shortest form; empty if there is none."""
    found = _NUMBER.search(text.replace("$", ""))
    if found is None:
        return ""
    value = float(found[0].replace(",", ""))
    return str(int(value)) if value.is_integer() else repr(value)


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
