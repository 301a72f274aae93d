"""The head of a reward model, fitted to rankings before anything else is trained.

With few rankings a random head first pulls the whole model about; one that is fitted to the
model's own features starts from what these already tell, and fine-tuning adds to it (Kumar et al.
2022, section 4: linear probing, then fine-tuning). The fit is Bradley and Terry's model with a
penalty, which is convex: it is found to the last digit, whatever the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lmsmith.device import HOST, device_of, moved
from lmsmith.models.batching import length_batches
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.objective import pair_accuracy
from lmsmith.rlhf.ranking import (
    TOKENS_AT_ONCE,
    EncodedRanking,
    candidate_batch,
    join_rankings,
    score_table,
)
from lmsmith.training.machine import ResolvedMachine

Floats: TypeAlias = NDArray[np.float64]

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ of λ/2·|w|² beside the mean loss of a pair, of features with deviation 1."""
FOLDS = 5
STEPS = 50
TOLERANCE = 1e-9


def response_features(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> list[Floats]:
    """What the head reads of every response of every ranking: (K, width) of each."""
    joined = join_rankings(rankings)
    found: list[Floats] = [np.empty(0)] * len(joined.rows)
    with machine.reading(model):
        for group in length_batches([row.length for row in joined.rows], TOKENS_AT_ONCE):
            batch = candidate_batch([joined.rows[index] for index in group])
            parts, device = (batch.tokens_bt, batch.positions_bt, batch.mask_bts), device_of(model)
            hidden_btd = model.decoder(*(moved(each, device) for each in parts)).to(HOST)
            rows_b1 = torch.arange(len(group))[:, None]
            features_bkd = hidden_btd[rows_b1, batch.ends_bk].double().numpy()
            for index, features_kd in zip(group, features_bkd, strict=True):
                found[index] = features_kd[: len(joined.rows[index].responses)]
    places = zip(joined.row_of, joined.columns, strict=True)
    return [found[row][columns] for row, columns in places]


def bradley_terry(differences_pd: Floats, weights_p: Floats, penalty: float) -> Floats:
    """The w that minimises Σ weight·(−log σ(w·x)) / Σ weight + penalty/2·|w|², by Newton's method.

    Args:
        differences_pd: x of each pair, the better response's features less the worse one's.
        weights_p: of the pairs.
        penalty: above 0, so that there is exactly one minimum.
    """
    share_p = weights_p / weights_p.sum()
    width = differences_pd.shape[1]
    found = np.zeros(width)

    def loss(w_d: Floats) -> float:
        spread = np.logaddexp(0.0, -(differences_pd @ w_d))
        return float(share_p @ spread + penalty / 2 * w_d @ w_d)

    now = loss(found)
    for _ in range(STEPS):
        # 1 − σ(x), without overflow
        wrong_p = 0.5 * (1.0 - np.tanh(differences_pd @ found / 2))
        gradient = -differences_pd.T @ (share_p * wrong_p) + penalty * found
        curved = differences_pd * (share_p * wrong_p * (1 - wrong_p))[:, None]
        hessian = differences_pd.T @ curved + penalty * np.eye(width)
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while loss(found - length * step) > now and length > 1e-6:
            length /= 2
        found = found - length * step
        before, now = now, loss(found)
        if before - now < TOLERANCE * max(1.0, now):
            break
    return found


@dataclass(frozen=True)
class FittedHead:
    """A head, and what it does on prompts that it was not fitted to.

    Attributes:
        weight_d: of the features as they are.
        penalty: the one of `PENALTIES` that does best there.
        scores: of each ranking's responses, by a head that was fitted without their prompt.
    """

    weight_d: Floats
    penalty: float
    scores: list[list[float]]


def fit_to_features(rankings: Sequence[EncodedRanking], features: Sequence[Floats]) -> FittedHead:
    """Fit with each penalty and without each fifth of the prompts, then with the best and all.

    Args:
        rankings: each with a pair that is not tied.
        features: (K, width) of each one's responses.
    """
    deviation_d = np.concatenate(features).std(axis=0)
    deviation_d[deviation_d == 0] = 1.0
    scaled = [features_kd / deviation_d for features_kd in features]
    pairs, weights, folds = [], [], []
    prompts: dict[tuple[int, ...], int] = {}
    for ranking, features_kd in zip(rankings, scaled, strict=True):
        fold = prompts.setdefault(tuple(ranking.prompt), len(prompts)) % FOLDS
        ranked = zip(ranking.ranks, features_kd, strict=True)
        found = [
            better - worse for (one, better), (two, worse) in permutations(ranked, 2) if one < two
        ]
        pairs += found
        weights += [ranking.weight / len(found)] * len(found)
        folds += [fold] * len(found)
    differences_pd, weights_p = np.stack(pairs), np.asarray(weights, np.float64)
    fold_p = np.asarray(folds)
    heads: dict[float, dict[int, Floats]] = {}
    losses = {}
    for penalty in PENALTIES:
        scores_p = np.zeros(len(pairs))
        heads[penalty] = {}
        for fold in range(FOLDS):
            rest = fold_p != fold
            enough = weights_p[rest].sum() > 0
            fitted = (
                bradley_terry(differences_pd[rest], weights_p[rest], penalty)
                if enough
                else np.zeros(differences_pd.shape[1])
            )
            heads[penalty][fold] = fitted
            scores_p[~rest] = differences_pd[~rest] @ fitted
        losses[penalty] = np.average(np.logaddexp(0.0, -scores_p), weights=weights_p)
    best = min(PENALTIES, key=losses.__getitem__)
    scores = [
        (features_kd @ heads[best][prompts[tuple(ranking.prompt)] % FOLDS]).tolist()
        for ranking, features_kd in zip(rankings, scaled, strict=True)
    ]
    return FittedHead(bradley_terry(differences_pd, weights_p, best) / deviation_d, best, scores)


def fit_head(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> dict[str, float]:
    """Set the head to the fit whose penalty does best on prompts that it was not fitted to.

    The best responses score 0 on average.

    Args:
        rankings: each with a pair that is not tied.

    Returns:
        ``head_penalty``, ``head_accuracy``: the share of pairs ordered rightly, each by a head that
        was fitted without its prompt, and ``head_train_accuracy``, by the head of all prompts.
    """
    features = response_features(model, rankings, machine)
    found = fit_to_features(rankings, features)
    scores = [features_kd @ found.weight_d for features_kd in features]
    best = [row[place] for each, row in zip(rankings, scores, strict=True) for place in each.best]
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(found.weight_d)[None])
        model.head.bias.zero_()
        model.shift.fill_(float(np.mean(best)))
    return {
        "head_penalty": found.penalty,
        "head_accuracy": pair_accuracy(*score_table(rankings, found.scores)),
        "head_train_accuracy": pair_accuracy(
            *score_table(rankings, [row.tolist() for row in scores])
        ),
    }
