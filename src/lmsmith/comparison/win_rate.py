"""How often one model's replies beat another's by a judge's scores, raw and at equal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lmsmith.statistics.fits import fit_logistic, sigmoid
from lmsmith.statistics.intervals import (
    Floats,
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
)

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
    design_n2 = np.stack([np.ones_like(ratio), ratio], axis=1)
    value = float(sigmoid(fit_logistic(design_n2, won, ridge=RIDGE)[0, 0]))
    parts = [
        sigmoid(fit_logistic(design_n2, won, counts, ridge=RIDGE)[:, 0])
        for counts in resample_counts(won.size, resamples, seed)
    ]
    return percentile_interval(value, np.concatenate(parts))
