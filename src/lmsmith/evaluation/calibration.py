"""Whether a model is right as often as it is sure: calibration of choices, and its correction.

A choice's probability is the softmax of the choices' scores; an item's confidence is that of the
choice with the highest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmsmith.evaluation.rows import ChoiceRow
from lmsmith.statistics.calibration import Bin, confidence_bins, expected_calibration_error
from lmsmith.statistics.fits import golden_section
from lmsmith.statistics.intervals import Floats


@dataclass(frozen=True)
class Calibration:
    """How well confidence foretells being right.

    Attributes:
        bins: the reliability diagram, ten bins of equal width.
        equal_width, equal_mass: expected calibration error with ten bins of either kind.
        confidence, accuracy: means over items.
        temperature: by which scores were divided.
    """

    bins: tuple[Bin, ...]
    equal_width: float
    equal_mass: float
    confidence: float
    accuracy: float
    temperature: float
    items: int


def calibrate(rows: Sequence[ChoiceRow], measure: str, temperature: float = 1.0) -> Calibration:
    """Calibration of multiple-choice items by a measure's scores, divided by a temperature."""
    confidence, correct = [], []
    for row in rows:
        probabilities = choice_probabilities(row.scores[measure], temperature)
        confidence.append(float(probabilities.max()))
        correct.append(float(int(probabilities.argmax()) == row.gold))
    wide = confidence_bins(confidence, correct)
    even = confidence_bins(confidence, correct, equal="mass")
    return Calibration(
        tuple(wide),
        expected_calibration_error(wide),
        expected_calibration_error(even),
        float(np.mean(confidence)),
        float(np.mean(correct)),
        temperature,
        len(rows),
    )


def calibrate_before_and_after(
    rows: Sequence[ChoiceRow], measure: str
) -> tuple[Calibration, Calibration]:
    """Calibration as it is, and with the temperature that fits best on every other item.

    Both are measured on the rest.
    """
    fitted = best_temperature(rows[::2], measure)
    held_out = rows[1::2] or rows
    return calibrate(held_out, measure), calibrate(held_out, measure, fitted)


def best_temperature(rows: Sequence[ChoiceRow], measure: str) -> float:
    """The T with the least mean −log softmax(scores / T)[gold] (Guo et al. 2017, section 4.2).

    It is convex in 1/T, so its minimum is found by golden section between 1/T of 1e-3 and 1e3.
    """
    inverse = golden_section(
        lambda x: _loss(rows, measure, math.exp(-x)), math.log(1e-3), math.log(1e3)
    )
    return math.exp(-inverse)


def _loss(rows: Sequence[ChoiceRow], measure: str, temperature: float) -> float:
    total = 0.0
    for row in rows:
        scores = np.asarray(row.scores[measure], np.float64) / temperature
        most = scores.max()
        total += most + float(np.log(np.exp(scores - most).sum())) - float(scores[row.gold])
    return total


def choice_probabilities(
    scores: Sequence[float | None] | Floats, temperature: float = 1.0
) -> Floats:
    """softmax(scores / temperature)."""
    scaled = np.asarray(scores, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())
