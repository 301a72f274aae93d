"""BLEU and ROUGE-L: against the formulas written out, and the library's own corpus score."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import numpy as np
import pytest

from lmsmith.comparison.run import compare_rows
from lmsmith.core.errors import UserError
from lmsmith.evaluation.measures import aggregate, paired_difference
from lmsmith.evaluation.methods import answers as overlap
from lmsmith.evaluation.rows import ItemRow

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

WORDS = ["the", "a", "dog", "cat", "ran", "sat", "to", "on", "river", "sea", "house", "blue", "old"]


def sentences(seed: int, count: int) -> tuple[list[str], list[list[str]]]:
    """Answers, and one or two references of each, which are answers with words changed."""
    draw = random.Random(seed)
    references = [
        [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(draw.randint(1, 2))]
        for _ in range(count)
    ]
    answers = [
        " ".join(w if draw.random() < 0.7 else draw.choice(WORDS) for w in each[0].split())
        for each in references
    ]
    return answers, references


def plain_bleu(answers: list[str], references: list[list[str]]) -> float:
    """Papineni et al. 2002, section 2.3, for texts in which every n-gram order has a match."""
    matches, totals = [0] * 4, [0] * 4
    given = wanted = 0
    for answer, all_references in zip(answers, references, strict=True):
        words = answer.split()
        given += len(words)
        lengths = [len(each.split()) for each in all_references]
        wanted += min(lengths, key=lambda n: (abs(n - len(words)), n))
        for n in range(1, 5):
            grams = Counter(zip(*(words[k:] for k in range(n)), strict=False))
            most: Counter[tuple[str, ...]] = Counter()
            for each in all_references:
                most |= Counter(zip(*(each.split()[k:] for k in range(n)), strict=False))
            matches[n - 1] += sum((grams & most).values())
            totals[n - 1] += sum(grams.values())
    mean = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - wanted / given)) * math.exp(mean)


def rows_of(answers: list[str], references: list[list[str]]) -> list[ItemRow]:
    return [
        ItemRow(id=str(n), metrics={"bleu": overlap.bleu_statistics(a, r)})
        for n, (a, r) in enumerate(zip(answers, references, strict=True))
    ]


def test_bleu_of_items_added_up_is_the_corpuss() -> None:
    seed = random.randrange(2**31)
    answers, references = sentences(seed, 80)
    found = aggregate(rows_of(answers, references), resamples=300)["bleu"]
    assert found.value == pytest.approx(plain_bleu(answers, references), abs=1e-6)
    streams = [[each[min(k, len(each) - 1)] for each in references] for k in range(2)]
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score, abs=1e-6)
    assert found.low < found.value < found.high


def test_bleu_of_any_counts_is_sacrebleus(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        totals = sorted((draw.choice([0, 1, 7, 40]) for _ in range(4)), reverse=True)
        counts = [draw.choice([0, draw.randint(0, total)]) for total in totals]
        lengths = [totals[0], draw.randint(1, 50)]
        expected = sacrebleu.BLEU.compute_bleu(counts, totals, *lengths, smooth_method="exp").score
        found = overlap.bleu_of_sums(np.array([[*lengths, *counts, *totals]], np.float64))
        assert found[0] == pytest.approx(expected, abs=1e-9), (lengths, counts, totals)


def test_bleus_interval_is_of_items_resampled() -> None:
    answers, references = sentences(3, 40)
    draw = random.Random(1)
    scores = []
    for _ in range(400):
        chosen = [draw.randrange(40) for _ in range(40)]
        scores.append(plain_bleu([answers[n] for n in chosen], [references[n] for n in chosen]))
    scores.sort()
    found = aggregate(rows_of(answers, references), resamples=2000)["bleu"]
    assert found.low == pytest.approx(scores[10], abs=2.5)
    assert found.high == pytest.approx(scores[-11], abs=2.5)


def test_two_models_bleu_is_compared_on_the_same_items() -> None:
    answers, references = sentences(5, 60)
    better = [
        each[0] if n % 3 == 0 else answer
        for n, (answer, each) in enumerate(zip(answers, references, strict=True))
    ]
    rows = [rows_of(each, references) for each in (answers, better)]
    difference = paired_difference(*rows, "bleu", resamples=500)
    values = [plain_bleu(each, references) for each in (answers, better)]
    assert difference.value == pytest.approx(values[1] - values[0], abs=1e-6)
    assert difference.low > 0
    assert compare_rows("made", "bleu", *rows).verdict == "better"


def longest(a: list[str], b: list[str]) -> int:
    """Length of a common subsequence, by its recursion."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            both = table[i][j] + 1
            table[i + 1][j + 1] = both if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    answers, references = sentences(random.randrange(2**31), 40)
    for answer, each in zip(answers, references, strict=True):
        best = 0.0
        for reference in each:
            given, right = answer.split(), reference.split()
            common = longest(given, right)
            if common:
                precision, recall = common / len(given), common / len(right)
                best = max(best, 2 * precision * recall / (precision + recall))
        assert overlap.rouge_l(answer.upper() + ".", each) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("measure", ["bleu", "rouge_l"])
def test_without_its_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    overlap._bleu.cache_clear()
    overlap._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"not installed\n.*pip install 'lmsmith\[eval\]'"):
        overlap.OVERLAPS[measure]("a", ["a"])


def test_han_characters_are_words() -> None:
    # 4 characters in common of 6 given and 4 right: 2 · 4 / 10
    assert overlap.rouge_l("北京大学很大", ["北京大学。"]) == pytest.approx(0.8)
    ours = overlap.bleu_statistics("我爱北京大学。", ["我爱北京大学！"])
    theirs = sacrebleu.BLEU(effective_order=True, tokenize="zh")
    score = theirs.sentence_score("我爱北京大学。", ["我爱北京大学！"])
    assert ours == [score.sys_len, score.ref_len, *score.counts, *score.totals]
