"""A scorer's accuracy beside rules, and by what it was compared with; all by hand."""

from __future__ import annotations

import pytest
import torch

from lmsmith.comparison.replies import accuracy_beside_rules, accuracy_by_origin


def test_the_strongest_rule_is_the_one_to_beat() -> None:
    pairs_b = torch.tensor([3.0, 1.0, 2.0, 2.0])
    rules = {
        "longer": torch.tensor([1.0, 0.5, 1.0, 0.0]),
        "likelier_total": torch.tensor([1.0, 0.0, 1.0, 0.0]),
        "likelier_per_token": torch.tensor([2.0, 1.0, 1.0, 1.0]),
    }
    found = accuracy_beside_rules(torch.tensor([3.0, 1.0, 1.0, 2.0]), pairs_b, rules, seed=0)
    assert found["longer_wins_accuracy"] == 2.5 / 8
    assert found["likelier_total_wins_accuracy"] == 2 / 8
    assert found["likelier_wins_accuracy"] == found["likelier_per_token_wins_accuracy"] == 5 / 8
    assert found["accuracy_above_rules"] == pytest.approx(2 / 8)
    low, high = found["accuracy_above_rules_low"], found["accuracy_above_rules_high"]
    assert 0.0 <= low < 2 / 8 < high


def test_each_kind_of_candidate_is_counted_against_the_best() -> None:
    scores = [[2.0, 1.0, 3.0], [1.0, 1.0, 0.0], [5.0, 0.0], [0.0, 1.0]]
    ranks = [[1, 2, 2], [2, 1, 1], [1, 2], [1, 2]]
    origins = [["human", "policy", "other"], ["policy", "human", "human"], None, ["human"]]
    found = accuracy_by_origin(scores, ranks, origins)
    # Of policy: right, a tie, wrong (the third best scores below it); of other: wrong.
    assert found == {"accuracy_against_policy": 0.5, "accuracy_against_other": 0.0}
