"""The Bradley–Terry model: which model is best, by comparisons of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmsmith.statistics.fits import fit_logistic, sigmoid
from lmsmith.statistics.intervals import Floats, Interval, percentile_interval, resample_counts

RIDGE = 0.01
"""Weight of ½‖β‖²: next to nothing, but it keeps β finite for a model that always wins."""

RESAMPLES = 500


@dataclass(frozen=True)
class Standing:
    """A model's place.

    Attributes:
        strength: β, whose mean over all models is 0; a model with β higher by d is preferred with
            probability σ(d).
        rate: how often it is preferred to a model of strength 0: σ(β).
        comparisons: their number, with other models.
    """

    model: str
    strength: Interval
    rate: Interval
    comparisons: int


Outcome = tuple[str, str, float]
"""One model, another, and what the first one has of the win: 1, ½ for a tie, 0."""


def leaderboard(tasks: Sequence[Sequence[Outcome]], seed: int = 0) -> list[Standing]:
    """The models, best first.

    Args:
        tasks: the outcomes of one task together, since they are not independent: the bootstrap
            resamples tasks whole. Outcomes of a model with itself say nothing and are left out.
    """
    different = ([each for each in task if each[0] != each[1]] for task in tasks)
    kept = [task for task in different if task]
    names = sorted({name for task in kept for one, other, _ in task for name in (one, other)})
    if not names:
        return []
    place = {name: number for number, name in enumerate(names)}
    wins_tmm = np.zeros((len(kept), len(names), len(names)))
    for number, task in enumerate(kept):
        for one, other, share in task:
            wins_tmm[number, place[one], place[other]] += share
            wins_tmm[number, place[other], place[one]] += 1 - share
    total_mm = wins_tmm.sum(axis=0)
    flat_tx = wins_tmm.reshape(len(kept), -1)
    drawn_rm = np.concatenate([
        bradley_terry((counts @ flat_tx).reshape(-1, *total_mm.shape))
        for counts in resample_counts(len(kept), RESAMPLES, seed)
    ])  # fmt: skip
    strength_m = bradley_terry(total_mm)
    games_m = (total_mm + total_mm.T).sum(axis=1)
    found = [
        Standing(
            name,
            strength := percentile_interval(float(strength_m[m]), drawn_rm[:, m]),
            Interval(*(float(sigmoid(x)) for x in vars(strength).values())),
            round(float(games_m[m])),
        )
        for m, name in enumerate(names)
    ]
    return sorted(found, key=lambda each: (-each.strength.value, each.model))


def bradley_terry(wins_rmm: Floats, ridge: float = RIDGE) -> Floats:
    """Strengths β of models: P(i preferred to j) = σ(β_i − β_j) (Bradley & Terry 1952).

    Minimises −Σ wins[i, j] log σ(β_i − β_j) + ½ ridge ‖β‖²; the minimum has Σβ = 0.
    A tie is half a win for each.

    Args:
        wins_rmm: how often the row's model was preferred to the column's; one table or several.

    Returns:
        (m,) of one table, (r, m) of several.
    """
    models = wins_rmm.shape[-1]
    one, other = (each.ravel() for each in np.indices((models, models)))
    design_np = np.eye(models)[one] - np.eye(models)[other]
    weights_rn = wins_rmm.reshape(-1, models**2)
    fitted_rm = fit_logistic(design_np, np.ones(len(one)), weights_rn, ridge=ridge)
    return fitted_rm.reshape(wins_rmm.shape[:-1])
