"""The fit against laws whose terms are known."""

from __future__ import annotations

import numpy as np
import pytest

from lmsmith.statistics.fits import fit_power_law, predict_largest

COMPUTE = [1e12, 4e12, 1.5e13, 6e13, 2e14]


@pytest.mark.parametrize(
    ("scale", "exponent", "irreducible"),
    [(50.0, -0.15, 0.7), (2e4, -0.4, 1.2), (30.0, -0.1, 0.0), (3e10, -0.9, 0.05)],
)
def test_noise_free_points_give_the_law_back(
    scale: float, exponent: float, irreducible: float
) -> None:
    law = fit_power_law(COMPUTE, [scale * c**exponent + irreducible for c in COMPUTE])
    assert law is not None
    assert law.exponent == pytest.approx(exponent, rel=1e-4)
    assert law.scale == pytest.approx(scale, rel=1e-2)
    assert law.irreducible == pytest.approx(irreducible, abs=1e-3)
    assert law.residual < 1e-6
    assert law(1e16) == pytest.approx(scale * 1e16**exponent + irreducible, rel=1e-3)


def test_noisy_points_give_it_nearly_and_no_worse_than_the_truth() -> None:
    chance = np.random.default_rng(0)
    compute = np.geomspace(1e12, 1e15, 12)
    truth = 500.0 * compute**-0.25 + 0.6
    losses = truth + chance.normal(0.0, 0.002, 12)
    law = fit_power_law(compute.tolist(), losses.tolist())
    assert law is not None
    assert law.exponent == pytest.approx(-0.25, abs=0.03)
    assert law.irreducible == pytest.approx(0.6, abs=0.01)
    fitted = np.array([law(float(c)) for c in compute])
    assert ((fitted - losses) ** 2).sum() <= ((truth - losses) ** 2).sum()


def test_the_irreducible_term_is_never_negative() -> None:
    law = fit_power_law(COMPUTE, [30.0 * c**-0.1 - 0.3 for c in COMPUTE])
    assert law is not None
    assert law.irreducible == 0.0


def test_the_largest_is_foretold_from_the_others_alone() -> None:
    losses = [500.0 * c**-0.25 + 0.6 for c in COMPUTE]
    found = predict_largest(COMPUTE[::-1], losses[::-1])
    assert found is not None
    assert found.predicted == pytest.approx(losses[-1], rel=1e-4)
    assert found.error == pytest.approx(0.0, abs=1e-4)
    other = predict_largest(COMPUTE, [*losses[:-1], 2 * losses[-1]])
    assert other is not None
    assert other.law == predict_largest(COMPUTE, losses).law  # type: ignore[union-attr]
    assert other.error == pytest.approx(-0.5, abs=1e-3)


def test_where_nothing_falls_nothing_is_foretold() -> None:
    found = predict_largest(COMPUTE, [1.0, 1.1, 1.2, 1.3, 1.0])
    assert found is not None
    assert found.law is None
    assert found.predicted is None
    assert found.error is None
    assert predict_largest(COMPUTE[:3], [3.0, 2.0, 1.0]) is None


@pytest.mark.parametrize(
    ("compute", "losses"),
    [([1.0, 2.0], [1.0, 0.5]), ([1.0, 2.0, 0.0], [3.0, 2.0, 1.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])],
)
def test_too_few_or_impossible_points_are_refused(
    compute: list[float], losses: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"power law|above 0"):
        fit_power_law(compute, losses)
