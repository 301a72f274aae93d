"""Logistic regression by Newton's method, many resamples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def sigmoid(x: ArrayLike) -> Floats:
    """1 / (1 + exp(−x)), without overflow."""
    x = np.asarray(x, np.float64)
    half = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, half) / (1.0 + half))


def fit_logistic(
    design_np: ArrayLike, y: ArrayLike, weights_rn: Floats | None = None, *, ridge: float
) -> Floats:
    """Logistic regressions y ~ σ(design · b), one for each row of weights.

    Minimises Σ w · cross entropy(y, σ(design · b)) + ½ ridge ‖b‖².

    Args:
        design_np: (n, p).
        y: (n,), 0, 1 or a fraction between.
        weights_rn: (r, n); one regression with weights 1 if None.
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
