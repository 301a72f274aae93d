"""The three controllers' steps by hand, and that they steer where they say."""

from __future__ import annotations

import pytest

from lmsmith.rlhf.kl import KLController


def test_fixed_stays() -> None:
    controller = KLController(0.02)
    for kl in (0.0, 5.0, 1e9):
        controller.update(kl, 512)
    assert controller.coefficient == 0.02


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2), (7.2, 0.2)],
)
def test_adaptive_steps_are_clipped_and_in_proportion(kl: float, error: float) -> None:
    controller = KLController(0.2, "adaptive", target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert controller.coefficient == pytest.approx(0.2 * (1 + error * 512 / 10_000))


def test_adaptive_finds_the_target() -> None:
    """Of a policy whose KL is 1 / β."""
    controller = KLController(1.0, "adaptive", target=6.0, horizon=1_000)
    for _ in range(400):
        controller.update(1.0 / controller.coefficient, 128)
    assert 1.0 / controller.coefficient == pytest.approx(6.0, rel=0.01)


def test_the_band_doubles_above_and_halves_below() -> None:
    controller = KLController(0.1, "band", low=1.0, high=10.0)
    coefficients = []
    for kl in (10.1, 30.0, 10.0, 5.0, 1.0, 0.9, -1.0):
        controller.update(kl, 64)
        coefficients.append(controller.coefficient)
    assert coefficients == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4, 0.2, 0.1])


def test_its_state_comes_back() -> None:
    controller, other = KLController(0.1, "band", high=1.0), KLController(0.1, "band", high=1.0)
    controller.update(2.0, 1)
    other.load_state_dict(controller.state_dict())
    assert other == controller
