"""Calibration of choices against definitions, and its correction by a temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lmsmith.evaluation.calibration import (
    best_temperature,
    calibrate,
    calibrate_before_and_after,
    choice_probabilities,
    confidence_bins,
)
from lmsmith.evaluation.rows import ChoiceRow
from lmsmith.statistics.calibration import expected_calibration_error


def rows_drawn(count: int, temperature: float, seed: int) -> list[ChoiceRow]:
    """Items whose right choice is drawn by softmax(scores / temperature)."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        scores = generator.normal(size=4) * 3
        gold = generator.choice(4, p=choice_probabilities(scores, temperature))
        rows.append(
            ChoiceRow(
                id="0",
                gold=int(gold),
                scores={"accuracy": scores.tolist()},
                chosen={},
                choices=[],
                metrics={},
            )
        )
    return rows


@pytest.mark.parametrize("equal", ["width", "mass"])
def test_the_error_is_its_definition(seed: int, equal: Any) -> None:
    generator = np.random.default_rng(seed)
    sure, right = generator.random(103), generator.integers(0, 2, 103)
    bins = confidence_bins(sure, right, bins=7, equal=equal)
    assert sum(each["count"] for each in bins) == 103
    order = np.argsort(sure)
    if equal == "width":
        parts = [np.flatnonzero((sure >= n / 7) & (sure < (n + 1) / 7)) for n in range(7)]
    else:
        assert max(b["count"] for b in bins) - min(b["count"] for b in bins) <= 1
        parts = [order[[i for i in range(103) if i * 7 // 103 == n]] for n in range(7)]
    expected = sum(abs(right[p].sum() - sure[p].sum()) / 103 for p in parts if len(p))
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_one_who_is_as_often_right_as_sure_has_little_error() -> None:
    rows = rows_drawn(4000, 1.0, 1)
    found = calibrate(rows, "accuracy")
    assert found.equal_width < 0.03
    assert found.equal_mass < 0.03
    assert found.confidence == pytest.approx(found.accuracy, abs=0.03)


def test_a_temperature_mends_one_who_is_too_sure() -> None:
    rows = rows_drawn(3000, 2.5, 2)
    before, after = calibrate_before_and_after(rows, "accuracy")
    assert before.equal_width > 0.1
    assert after.equal_width < 0.04
    assert after.accuracy == before.accuracy  # what is chosen does not change
    assert after.temperature == pytest.approx(2.5, rel=0.1)


def test_the_temperature_has_the_least_loss(seed: int) -> None:
    rows = rows_drawn(80, 0.6, int(np.random.default_rng(seed).integers(1000)))
    scores = torch.tensor([row.scores["accuracy"] for row in rows], dtype=torch.float64)
    gold = torch.tensor([row.gold for row in rows])
    best = best_temperature(rows, "accuracy")
    losses = [float(F.cross_entropy(scores / t, gold)) for t in (best, best * 1.02, best / 1.02)]
    assert losses[0] == min(losses)
