"""Fits: logistic regressions, and the power law that predicts a large model's loss from small ones.

L(C) = a · C^b + c, b < 0: how GPT-4's loss was predicted from models of a ten-thousandth of its
compute (OpenAI 2023, section 3); without c it is the law of Kaplan et al. 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from lmsmith.statistics.intervals import Floats

STEEPEST, FLATTEST = -4.0, -1e-3
"""Exponents b between which the law is sought."""

_GRID = 400


def sigmoid(x: ArrayLike) -> Floats:
    """1 / (1 + exp(−x)), without overflow."""
    x = np.asarray(x, np.float64)
    half = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, half) / (1.0 + half))


def fit_logistic(
    design_np: ArrayLike, y: ArrayLike, weights_rn: Floats | None = None, *, ridge: float
) -> Floats:
    """Logistic regressions y ~ σ(design · b) by Newton's method, one for each row of weights.

    Minimises Σ w · cross entropy(y, σ(design · b)) + ½ ridge ‖b‖².

    Args:
        y: (n,), between 0 and 1.
        weights_rn: one regression with weights 1 if None.
        ridge: a small weight keeps b finite where all outcomes are the same.

    Returns:
        (r, p): b of each regression.
    """
    x_np, y_n = np.asarray(design_np, np.float64), np.asarray(y, np.float64)
    weights_rn = np.ones((1, len(x_np))) if weights_rn is None else weights_rn
    b_rp = np.zeros((len(weights_rn), x_np.shape[1]))
    for _ in range(100):
        p_rn = sigmoid(b_rp @ x_np.T)
        gradient_rp = (weights_rn * (p_rn - y_n)) @ x_np + ridge * b_rp
        curvature_rn = weights_rn * p_rn * (1.0 - p_rn)
        hessian_rpp = np.einsum("rn,np,nq->rpq", curvature_rn, x_np, x_np, optimize=True)
        hessian_rpp += ridge * np.eye(x_np.shape[1])
        step_rp = np.linalg.solve(hessian_rpp, gradient_rp[..., None])[..., 0]
        # A full step may overshoot where nearly all weights agree; a bounded one cannot.
        step_rp /= np.maximum(1.0, np.abs(step_rp).max(axis=1, keepdims=True))
        b_rp -= step_rp
        if np.abs(step_rp).max() < 1e-10:
            break
    return b_rp


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
        compute: above 0; at least three different ones.

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
    low, high = grid[min(best + 1, _GRID - 1)], grid[max(best - 1, 0)]
    exponent = golden_section(lambda b: solve(b)[0], float(low), float(high))
    _, a, c = solve(exponent)
    if a <= 0.0:
        return None
    law = PowerLaw(a * middle**-exponent, exponent, c, 0.0)
    residual = max(abs(law(float(x)) - float(y)) for x, y in zip(c_n, l_n, strict=True))
    return replace(law, residual=residual)


@dataclass(frozen=True)
class Prediction:
    """The largest model's measured loss, and the loss that the smaller ones predict.

    Attributes:
        law: fitted to the smaller ones; None where their losses do not fall.
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
    """Fit all but the one with the most compute, and predict it; None if under three are left."""
    order = np.argsort(np.asarray(compute))
    smaller, largest = order[:-1], int(order[-1])
    if len({compute[int(i)] for i in smaller}) < 3:
        return None
    law = fit_power_law([compute[int(i)] for i in smaller], [losses[int(i)] for i in smaller])
    predicted = None if law is None else law(compute[largest])
    return Prediction(law, predicted, losses[largest])


def golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function with one valley between low and high."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2.0
