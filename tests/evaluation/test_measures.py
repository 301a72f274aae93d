"""Measures of items' numbers, and the paired difference of two models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmsmith.comparison.run import compare_rows, summary
from lmsmith.evaluation.measures import aggregate, measure_of, paired_difference
from lmsmith.evaluation.rows import ItemRow
from lmsmith.statistics.intervals import wilson_interval


def rows_of(values: list[float], name: str = "accuracy") -> list[ItemRow]:
    return [ItemRow(id=str(n), metrics={name: value}) for n, value in enumerate(values)]


def test_shares_are_means_and_perplexities_are_exponents_of_them() -> None:
    found = aggregate(
        [
            ItemRow(
                id="0", metrics={"accuracy": 1.0, "perplexity": 1.0, "word_perplexity": [6.0, 2]}
            ),
            ItemRow(
                id="1", metrics={"accuracy": 0.0, "perplexity": 3.0, "word_perplexity": [6.0, 4]}
            ),
        ]
    )
    assert found["accuracy"].value == 0.5
    assert found["perplexity"].value == pytest.approx(math.exp(2.0))
    assert found["word_perplexity"].value == pytest.approx(math.exp(2.0))
    assert (found["perplexity"].low, found["perplexity"].high) == pytest.approx(
        (math.exp(1.0), math.exp(3.0))
    )


def test_a_single_item_has_no_interval() -> None:
    row = ItemRow(id="0", metrics={"accuracy": 1.0, "word_perplexity": [6.0, 2]})
    for found in aggregate([row]).values():
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    other = ItemRow(id="0", metrics={"word_perplexity": [5.0, 2]})
    compared = compare_rows("one", "word_perplexity", [row], [other])
    assert compared.difference.value == pytest.approx(math.exp(2.5) - math.exp(3.0))
    assert math.isnan(compared.difference.low)
    assert compared.verdict == "unclear"


@pytest.mark.parametrize("right", [0, 1])
def test_all_or_none_right_has_an_interval_still(right: int) -> None:
    found = aggregate(rows_of([float(right)] * 20))["accuracy"]
    assert vars(found) == vars(wilson_interval(20 * right, 20))
    assert 0.1 < found.high - found.low < 0.2
    # What is no share of right items has none such.
    assert aggregate(rows_of([1.0] * 20, "bits_per_byte"))["bits_per_byte"].high == 1.0


def test_what_several_comparisons_come_to_is_said_in_a_line() -> None:
    up, same = rows_of([0.0] * 30 + [1.0] * 30), rows_of([1.0] * 60)
    found = [
        compare_rows("a", "accuracy", up, same),
        compare_rows("b", "accuracy", same, up),
        compare_rows("c", "accuracy", same, same),
        compare_rows("d", "perplexity", rows_of([1.0], "perplexity"), rows_of([1.0], "perplexity")),
    ]
    assert [each.is_unchanged for each in found] == [False, False, True, False]
    assert summary(found) == "better on 1 of 4, worse on 1; no item changed in 1: c"
    falls = [rows_of([value] * 9, "perplexity") for value in (2.0, 1.0)]
    words = [found[2], compare_rows("c", "perplexity", *falls)]
    assert summary(words) == "better on 1 of 1, worse on 0"
    assert summary(found[:1]) == "better on 1 of 1, worse on 0"
    names = ("a", "b", "b, 1-shot", "c, 16-shot")
    alike = [compare_rows(name, "accuracy", same, same) for name in names]
    assert summary(alike).endswith("no item changed in 4: a, b (0, 1-shot), c (16-shot)")


@pytest.mark.parametrize(("count", "verdict"), [(2, "unclear"), (5, "unclear"), (6, "better")])
def test_few_items_that_all_changed_the_same_way_tell_nothing(count: int, verdict: str) -> None:
    none, every = rows_of([0.0] * count), rows_of([1.0] * count)
    found = compare_rows("made", "accuracy", none, every)
    assert (found.difference.value, found.verdict) == (1.0, verdict)
    other = compare_rows("made", "accuracy", every, none)
    assert other.verdict == verdict.replace("better", "worse")
    if verdict == "better":
        assert 0.5 < found.difference.low < found.difference.high == 1.0
        assert other.difference.low == -1.0 < other.difference.high < -0.5


def test_a_difference_that_is_not_known_is_unclear() -> None:
    endless = rows_of([math.inf, 1.0], "perplexity")
    assert compare_rows("made", "perplexity", endless, endless).verdict == "unclear"


def test_measures_are_known_by_name() -> None:
    assert measure_of("pass_at_10").name == "pass@10"
    assert measure_of("pass_at_10").higher_is_better
    assert not measure_of("bits_per_byte").higher_is_better


def test_pairing_takes_out_what_both_have_in_common(seed: int) -> None:
    generator = np.random.default_rng(seed)
    easy = generator.random(400)
    first = rows_of([float(x < 0.5) for x in easy])
    second = rows_of([float(x < 0.55) for x in easy])
    paired = paired_difference(first, second, "accuracy")
    share = float(np.mean((easy >= 0.5) & (easy < 0.55)))
    half = 1.96 * math.sqrt(share * (1 - share) / 400)  # of items that b alone has right
    assert paired.value == pytest.approx(share)
    assert (paired.high - paired.low) / 2 == pytest.approx(half, rel=0.15)
    assert paired.low > 0


def test_a_difference_of_perplexities_is_one_of_exponents() -> None:
    first, second = rows_of([1.0, 2.0], "perplexity"), rows_of([2.0, 3.0], "perplexity")
    difference = paired_difference(first, second, "perplexity", resamples=500)
    assert difference.value == pytest.approx(math.exp(2.5) - math.exp(1.5))


def test_a_comparison_names_the_items_that_changed() -> None:
    first, second = rows_of([1, 1, 0, 0, 1]), rows_of([1, 0, 1, 1])
    found = compare_rows("made", "accuracy", first, second)
    assert (found.gained, found.lost, found.items) == (("2", "3"), ("1",), 4)
    assert (found.value_a, found.value_b) == (0.5, 0.75)
    assert found.verdict == "unclear"
    lower = compare_rows(
        "made", "perplexity", rows_of([2.0] * 9, "perplexity"), rows_of([1.0] * 9, "perplexity")
    )
    assert (lower.verdict, lower.gained) == ("better", ())
    with pytest.raises(ValueError, match="no item"):
        compare_rows("made", "accuracy", first, [])
