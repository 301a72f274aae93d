"""How often one model's replies beat another's by a judge's scores, raw and at equal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsmith.statistics.bootstrap import (
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
)

Floats = NDArray[np.float64]

RIDGE = 1e-3
"""Weight of ½‖b‖² in the logistic regression: next to nothing, but it keeps b finite when one
side wins always."""


def wins(scores_a: ArrayLike, scores_b: ArrayLike) -> Floats:
    """1 where a scores higher, 0 where b does, ½ where they are equal."""
    difference = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    return (np.sign(difference) + 1.0) / 2.0


def win_rate(
    scores_a: ArrayLike, scores_b: ArrayLike, *, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """Share of prompts on which a wins, ties counting ½, with its bootstrap 95 % interval.

    Args:
        scores_a, scores_b: a judge's score of each side's reply to the same prompts.
    """
    return bootstrap_ratio(wins(scores_a, scores_b), seed=seed, resamples=resamples)


def length_controlled_win_rate(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> Interval:
    """The win rate of a that the same replies would have at equal length.

    The wins are regressed on the log ratio of lengths,

        P(a wins) = σ(b₀ + b₁ · log(length_a / length_b)),

    and the rate at equal length is σ(b₀). It is the idea of length-controlled AlpacaEval
    (Dubois et al. 2024, section 3), without its terms for the instruction's difficulty and its
    tanh. The interval is a percentile bootstrap over prompts, the regression fitted anew on
    each resample.

    Limits: it removes what is linear in the log ratio, whether length moved the judge by itself
    or a better reply happened to be longer; and it extrapolates when hardly any two replies are
    of similar length.

    Args:
        scores_a, scores_b: a judge's score of each side's reply to the same prompts.
        lengths_a, lengths_b: lengths of the replies, at least 1 (count the end of turn).
    """
    won = wins(scores_a, scores_b)
    return rate_at_equal_length(won, lengths_a, lengths_b, seed=seed, resamples=resamples)


def rate_at_equal_length(
    won: Floats,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> Interval:
    """`length_controlled_win_rate` of shares of a win, such as several people's mean.

    Args:
        won: (prompts,): 1 where a won, 0 where b did, or between.
    """
    ratio = np.log(np.asarray(lengths_a, np.float64) / np.asarray(lengths_b, np.float64))
    value = float(_sigmoid(fit_logistic(ratio, won)[0, 0]))
    parts = [
        _sigmoid(fit_logistic(ratio, won, counts)[:, 0])
        for counts in resample_counts(won.size, resamples, seed)
    ]
    return percentile_interval(value, np.concatenate(parts))


def fit_logistic(
    x: ArrayLike, y: ArrayLike, weights_rn: Floats | None = None, ridge: float = RIDGE
) -> Floats:
    """Logistic regressions y ~ σ(b₀ + b₁x), one for each row of weights, by Newton's method.

    Minimises Σ w · cross entropy(y, σ(b₀ + b₁x)) + ½ ridge ‖b‖²; y may be a fraction.

    Args:
        x, y: (n,).
        weights_rn: (regressions, n); one regression with weights 1 if None.

    Returns:
        (regressions, 2): b₀ and b₁.
    """
    x_n, y_n = np.asarray(x, np.float64), np.asarray(y, np.float64)
    weights_rn = np.ones((1, x_n.size)) if weights_rn is None else weights_rn
    b_r2 = np.zeros((weights_rn.shape[0], 2))
    for _ in range(100):
        p_rn = _sigmoid(b_r2[:, :1] + b_r2[:, 1:] * x_n)
        residual_rn = weights_rn * (p_rn - y_n)
        curvature_rn = weights_rn * p_rn * (1.0 - p_rn)
        g0 = residual_rn.sum(axis=1) + ridge * b_r2[:, 0]
        g1 = residual_rn @ x_n + ridge * b_r2[:, 1]
        h00 = curvature_rn.sum(axis=1) + ridge
        h01 = curvature_rn @ x_n
        h11 = curvature_rn @ (x_n * x_n) + ridge
        determinant = h00 * h11 - h01 * h01
        step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], axis=1) / determinant[:, None]
        # A full step may overshoot where nearly all weights agree; a bounded one cannot.
        step /= np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))
        b_r2 -= step
        if np.abs(step).max() < 1e-10:
            break
    return b_r2


def _sigmoid(x: NDArray[np.float64] | np.float64) -> Floats:
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, half) / (1.0 + half)
