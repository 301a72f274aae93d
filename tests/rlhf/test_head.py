"""A head that is fitted to rankings: against scikit-learn, and on features that tell the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lmsmith.core.recipe import MachineConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.head import bradley_terry, fit_head, response_features
from lmsmith.rlhf.ranking import EncodedRanking, score_rankings
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_bradley_terry_is_logistic_regression_of_differences(seed: int, penalty: float) -> None:
    generator = np.random.default_rng(seed)
    differences = generator.normal(0.3, 1.0, (200, 12))
    weights = generator.uniform(0.1, 2.0, 200)
    found = bradley_terry(differences, weights, penalty)
    # Each pair once as it is and once turned over, so that both classes are there.
    oracle = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([differences, -differences]),
        np.repeat([1, 0], 200),
        np.tile(weights / weights.sum() / 2, 2),
    )
    np.testing.assert_allclose(found, oracle.coef_[0], rtol=1e-3, atol=1e-5)


def test_pairs_that_a_plane_divides_have_a_finite_fit() -> None:
    found = bradley_terry(np.eye(3) * 1e3, np.ones(3), 1e-3)
    assert np.isfinite(found).all()
    assert (found > 0).all()


def model_and_rankings(seed: int) -> tuple[ScalarModel, list[EncodedRanking]]:
    """Rankings by a hidden direction of the model's own features."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(ModelConfig(2, 16, 2, 32, 40))
    decoder.initialise(generator)
    model = ScalarModel(decoder)
    model.initialise_head(generator)
    decoder.attend_explicitly()

    def tokens(length: int) -> list[int]:
        return torch.randint(0, 40, (length,), generator=generator).tolist()

    asked = [tokens(4) for _ in range(60)]
    plain = [EncodedRanking(each, [tokens(5), tokens(6), tokens(3)], [1, 1, 1]) for each in asked]
    taste = torch.randn(16, generator=generator).double().numpy()
    found = []
    for each, features in zip(plain, response_features(model, plain, MACHINE), strict=True):
        order = (-features @ taste).argsort().argsort() + 1
        found.append(EncodedRanking(each.prompt, each.responses, order.tolist()))
    return model, found


def test_the_head_finds_what_the_features_tell(seed: int) -> None:
    model, rankings = model_and_rankings(seed)
    model.head.bias.data.fill_(3.0)
    figures = fit_head(model, rankings, MACHINE)
    assert figures["head_accuracy"] > 0.9
    right = []
    for each, scores in zip(rankings, score_rankings(model, rankings, MACHINE), strict=True):
        right.append(np.argsort(each.ranks).tolist() == np.argsort(scores)[::-1].tolist())
    assert np.mean(right) > 0.8
    features = np.concatenate(response_features(model, rankings, MACHINE))
    scores = [score for row in score_rankings(model, rankings, MACHINE) for score in row]
    weight = model.head.weight[0].double().detach().numpy()
    np.testing.assert_allclose(features @ weight - float(model.shift), scores, rtol=1e-4, atol=1e-4)
    best = [
        row[place]
        for each, row in zip(rankings, score_rankings(model, rankings, MACHINE), strict=True)
        for place in each.best
    ]
    assert np.mean(best) == pytest.approx(0.0, abs=1e-4)
    assert figures["head_train_accuracy"] >= figures["head_accuracy"]


def test_where_features_tell_nothing_the_penalty_is_great(seed: int) -> None:
    model, rankings = model_and_rankings(seed)
    generator = np.random.default_rng(seed)
    mixed = [
        EncodedRanking(each.prompt, each.responses, (generator.permutation(3) + 1).tolist())
        for each in rankings
    ]
    figures = fit_head(model, mixed, MACHINE)
    assert figures["head_penalty"] >= 0.1
    assert figures["head_accuracy"] < 0.62
