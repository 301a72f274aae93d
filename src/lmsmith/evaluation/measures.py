"""Measures of items' rows, each with its bootstrap interval over items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmsmith.evaluation.methods.answers import bleu_of_sums
from lmsmith.evaluation.rows import ItemRow
from lmsmith.statistics.intervals import (
    Floats,
    Interval,
    percentile_interval,
    resample_counts,
    wilson_interval,
)

NAN = float("nan")


@dataclass(frozen=True)
class Measure:
    """How a measure is made of items' numbers, and read.

    Attributes:
        transform: of Σ numerators / Σ denominators.
        is_share: whether it lies between 0 and 1, and is shown in per cent.
        of_sums: of a measure that is no ratio: its values from items' numbers added up.
    """

    name: str
    transform: Callable[[float], float] = float
    higher_is_better: bool = True
    is_share: bool = True
    of_sums: Callable[[Floats], Floats] | None = None

    def values(self, sums_rs: Floats) -> Floats:
        """The value of each resample, from the sums of its items' numbers."""
        if self.of_sums is not None:
            return self.of_sums(sums_rs)
        ratios = _ratios(sums_rs)
        return np.array([self.transform(ratio) for ratio in ratios.tolist()], np.float64)


def _ratios(sums_rs: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums_rs[:, 0] / sums_rs[:, 1], np.float64)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


MEASURES: Mapping[str, Measure] = {
    **{name: Measure(name.replace("_", " ")) for name in (
        "accuracy", "accuracy_per_token", "accuracy_per_character", "accuracy_per_byte",
        "accuracy_unconditional", "exact_match", "graded_right",
    )},
    "accuracy_without_stop_words": Measure("accuracy no stop words"),
    "f1": Measure("F1 of words"),
    "bleu": Measure("BLEU", is_share=False, of_sums=bleu_of_sums),
    "rouge_l": Measure("ROUGE-L"),
    "expected_max_toxicity": Measure("expected maximum toxicity", higher_is_better=False),
    "toxic_probability": Measure("toxic at least once", higher_is_better=False),
    "mean_toxicity": Measure("mean toxicity", higher_is_better=False),
    "refusal_rate": Measure("refused"),
    "over_refusal_rate": Measure("refused without need", higher_is_better=False),
    "probability_right": Measure("mean probability of right"),
    "perplexity": Measure("perplexity", _exp, False, False),
    "word_perplexity": Measure("perplexity a word", _exp, False, False),
    "token_perplexity": Measure("perplexity a token", _exp, False, False),
    "bits_per_byte": Measure("bits per byte", float, False, False),
    "bits_per_character": Measure("bits per character", float, False, False),
}  # fmt: skip

LM_EVAL: Mapping[str, str] = {
    "accuracy": "acc",
    "accuracy_per_character": "acc_norm",
    "accuracy_per_byte": "acc_bytes",
    "accuracy_unconditional": "acc_mutual_info",
    "exact_match": "exact_match",
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
}
"""Measure → what lm-evaluation-harness calls the same figure."""


def lm_eval_metrics(measures: Mapping[str, Interval]) -> dict[str, Interval]:
    """The measures that lm-evaluation-harness has too, by its names.

    Its ``byte_perplexity`` is 2 to the bits per byte. Its ``word_perplexity`` is none of ours,
    since it counts no line ends.
    """
    found = {LM_EVAL[name]: each for name, each in measures.items() if name in LM_EVAL}
    if bits := found.get("bits_per_byte"):
        ends = (_exp(end * math.log(2)) for end in (bits.value, bits.low, bits.high))
        found["byte_perplexity"] = Interval(*ends)
    return found


def measure_of(name: str) -> Measure:
    """A measure by name, ``pass_at_K`` and extra ones included."""
    if name in MEASURES:
        return MEASURES[name]
    return Measure(name.replace("_", " ").replace("pass at ", "pass@"))


def parts_of(rows: Sequence[ItemRow], name: str) -> Floats:
    """(items, numbers): numerator and denominator, or the summands of `Measure.of_sums`."""
    values = [row.metrics[name] for row in rows]
    return np.array([v if isinstance(v, list) else (v, 1.0) for v in values], np.float64)


def value_of(rows: Sequence[ItemRow], name: str) -> float:
    """A measure of all items."""
    return float(measure_of(name).values(parts_of(rows, name).sum(axis=0, keepdims=True))[0])


def aggregate(
    rows: Sequence[ItemRow], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Interval]:
    """Every measure that the items have, with its 95 % interval.

    It is the percentile interval of resampled items. If all items are right, or none is, resamples
    are all alike, and it is Wilson's. A single item has no interval (NaN).
    """
    if not rows:
        return {}
    parts = {name: parts_of(rows, name) for name in rows[0].metrics}
    sums: dict[str, list[Floats]] = {name: [] for name in parts}
    for counts in resample_counts(len(rows), resamples, seed):  # drawn once for all measures
        for name, each in parts.items():
            sums[name].append(_product(counts, each))
    found = {}
    for name, each in parts.items():
        measure, sums_rs = measure_of(name), np.concatenate(sums[name])
        if measure.of_sums is not None:
            found[name] = percentile_interval(value_of(rows, name), measure.of_sums(sums_rs))
        elif each[:, 1].sum():
            whole = float(each[:, 0].sum() / each[:, 1].sum())
            ratio = percentile_interval(whole, _ratios(sums_rs))
            ends = [measure.transform(end) for end in (ratio.value, ratio.low, ratio.high)]
            found[name] = Interval(*ends)
            if measure.is_share and _is_all_or_none(each):
                found[name] = wilson_interval(int(each[:, 0].sum()), len(rows))
    if len(rows) == 1:
        return {name: Interval(each.value, NAN, NAN) for name, each in found.items()}
    return found


def _is_all_or_none(parts: Floats) -> bool:
    """Whether items are right or wrong, and all of them the same."""
    first = parts[0, 0]
    return bool(first in (0.0, 1.0) and (parts == (first, 1.0)).all())


def _resampled(parts: Floats, measure: Measure, resamples: int, seed: int) -> Floats:
    """A measure of each resample of items."""
    counts = resample_counts(len(parts), resamples, seed)
    return np.concatenate([measure.values(_product(each, parts)) for each in counts])


def _product(counts: Floats, parts: Floats) -> Floats:
    """Sums of resampled items; NaN where an infinite one was not drawn (0 · ∞)."""
    with np.errstate(invalid="ignore"):
        found: Floats = counts @ parts
    return found


def paired_difference(
    rows_a: Sequence[ItemRow],
    rows_b: Sequence[ItemRow],
    name: str,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """A measure of b less that of a on the same items, items resampled for both together.

    If b has all items right and a none, or the reverse, resamples are all alike: fewer than six
    items tell nothing then (the sign test's two-sided p is 2 · 2⁻ⁿ), more have Wilson's interval.
    A single item has no interval (NaN).

    Args:
        rows_a, rows_b: of the same items in the same order.
    """
    measure = measure_of(name)
    value = value_of(rows_b, name) - value_of(rows_a, name)
    if len(rows_a) == 1:
        return Interval(value, NAN, NAN)
    if measure.is_share and (all_alike := _all_alike(rows_a, rows_b, name)):
        return all_alike
    # The same seed draws the same items for both.
    of_a, of_b = (
        _resampled(parts_of(rows, name), measure, resamples, seed) for rows in (rows_a, rows_b)
    )
    with np.errstate(invalid="ignore"):  # two infinite ones have no difference
        return percentile_interval(value, of_b - of_a)


FEWEST_ALIKE = 6
"""Items that must all have changed the same way before it counts: 2 · 2⁻⁶ < 0.05."""


def _all_alike(rows_a: Sequence[ItemRow], rows_b: Sequence[ItemRow], name: str) -> Interval | None:
    """Interval of a difference in which every item changes from wrong to right, or back."""
    a, b = parts_of(rows_a, name), parts_of(rows_b, name)
    if not (_is_all_or_none(a) and _is_all_or_none(b)) or a[0, 0] == b[0, 0]:
        return None
    sign, count = float(b[0, 0] - a[0, 0]), len(rows_a)
    if count < FEWEST_ALIKE:
        return Interval(sign, NAN, NAN)
    nearer = sign * wilson_interval(count, count).low
    return Interval(sign, min(sign, nearer), max(sign, nearer))
