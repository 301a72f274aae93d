"""A power law with an irreducible term, fitted to small models to predict a large one's loss.

L(C) = a · C^b + c, b < 0: how GPT-4's loss was predicted from models of a ten-thousandth of its
compute (OpenAI 2023, section 3); without c it is the law of Kaplan et al. 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

STEEPEST, FLATTEST = -4.0, -1e-3
_GRID = 400


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = scale · C^exponent + irreducible.

    Attributes:
        scale: a, above 0.
        exponent: b, below 0.
        irreducible: c, 0 or more.
        residual: the largest distance of a fitted point from it, in the loss's unit.
    """

    scale: float
    exponent: float
    irreducible: float
    residual: float

    def __call__(self, compute: float) -> float:
        return float(self.scale * compute**self.exponent + self.irreducible)


def fit_power_law(compute: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """The law with the least sum of squared distances from the points.

    For a given b the best a and c are a linear problem (c no less than 0); b is found on a grid
    and then by golden section around the grid's best.

    Args:
        compute: of each model, above 0; at least three different ones.
        losses: of each model.

    Returns:
        None where the losses do not fall, so that no law with b < 0 < a fits.

    Raises:
        ValueError: fewer than three points, or numbers that are not positive and finite.
    """
    c_n, l_n = np.asarray(compute, np.float64), np.asarray(losses, np.float64)
    if len(c_n) != len(l_n) or len(np.unique(c_n)) < 3:
        raise ValueError("a power law with an irreducible term needs three different sizes")
    if not (np.isfinite(l_n).all() and np.isfinite(c_n).all() and (c_n > 0).all()):
        raise ValueError("compute must be above 0, and all numbers finite")
    middle = math.exp(float(np.log(c_n).mean()))
    scaled_n = c_n / middle  # powers of numbers near 1 lose no digits

    def solve(exponent: float) -> tuple[float, float, float]:
        """(squared distances, a of the scaled compute, c)."""
        power_n = scaled_n**exponent
        centred = power_n - power_n.mean()
        a = float(centred @ (l_n - l_n.mean()) / (centred @ centred))
        c = float(l_n.mean() - a * power_n.mean())
        if c < 0.0:
            a, c = float(power_n @ l_n / (power_n @ power_n)), 0.0
        rest = a * power_n + c - l_n
        return float(rest @ rest), a, c

    grid = -np.geomspace(-FLATTEST, -STEEPEST, _GRID)
    errors = [solve(float(b))[0] for b in grid]
    best = int(np.argmin(errors))
    exponent = golden_section(
        lambda b: solve(b)[0],
        float(grid[min(best + 1, _GRID - 1)]),
        float(grid[max(best - 1, 0)]),
    )
    _, a, c = solve(exponent)
    if a <= 0.0:
        return None
    law = PowerLaw(a * middle**-exponent, exponent, c, 0.0)
    residual = max(abs(law(float(x)) - float(y)) for x, y in zip(c_n, l_n, strict=True))
    return PowerLaw(law.scale, law.exponent, law.irreducible, residual)


@dataclass(frozen=True)
class Prediction:
    """The largest model's loss as smaller ones predict it, beside what was measured.

    Attributes:
        law: fitted to the smaller ones; None where their losses do not fall.
        predicted: the largest one's loss by it.
        measured: its loss.
    """

    law: PowerLaw | None
    predicted: float | None
    measured: float

    @property
    def error(self) -> float | None:
        """(predicted − measured) / measured."""
        if self.predicted is None:
            return None
        return (self.predicted - self.measured) / self.measured


def predict_largest(compute: Sequence[float], losses: Sequence[float]) -> Prediction | None:
    """Fit all but the one with the most compute, and foretell that one.

    Returns:
        None where fewer than three are left to fit.
    """
    order = np.argsort(np.asarray(compute))
    smaller, largest = order[:-1], int(order[-1])
    if len({compute[int(i)] for i in smaller}) < 3:
        return None
    law = fit_power_law([compute[int(i)] for i in smaller], [losses[int(i)] for i in smaller])
    predicted = None if law is None else law(compute[largest])
    return Prediction(law, predicted, losses[largest])


def golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one valley between low and high is least."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2.0
