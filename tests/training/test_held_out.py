"""The weights that did best are kept through a checkpoint; what cannot have learnt is told of."""

from __future__ import annotations

import pytest
import torch

from lmsmith.training.held_out import BestWeights, batch_for_steps, few_steps_warning, rise_warning


def test_best_weights_survive_a_checkpoint_and_prefer_low_loss_when_equal() -> None:
    model = torch.nn.Linear(1, 1)
    best = BestWeights(model)
    best.restore()  # nothing offered yet: nothing happens
    for value, accuracy, loss in ((1.0, 0.6, 0.7), (2.0, 0.6, 0.6), (3.0, 0.5, 0.1)):
        model.weight.data.fill_(value)
        best.offer((accuracy, -loss), int(value))
    other = BestWeights(model)
    other.load_state_dict(best.state_dict())
    assert (other.figures, other.step, other.looks_since) == ((0.6, -0.6), 2, 1)
    other.restore()
    assert model.weight.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("items", "batch", "minimum", "expected"),
    [
        (1600, 32, 50, 32),  # enough: nothing changes
        (1599, 32, 50, 31),
        (100, 32, 50, 2),
        (7, 32, 50, 1),
        (7, 32, 0, 32),  # turned off
        (0.5, 4, 50, 1),
    ],
)
def test_the_batch_shrinks_with_little_data(
    items: float, batch: int, minimum: int, expected: int
) -> None:
    assert batch_for_steps(items, batch, minimum) == expected


def test_few_steps_and_a_rise_are_told_of() -> None:
    assert few_steps_warning(50, "more") == ""
    assert few_steps_warning(6, "more") == "6 steps are too few to learn much: more"
    assert rise_warning("loss", [(5, 3.0), (9, 2.0), (12, 2.01)], 9) == ""
    assert rise_warning("loss", [], 0) == ""
    told = rise_warning("loss", [(5, 2.61), (9, 2.7), (12, 2.8)], 5)
    assert "rose from 2.610 after step 5 to 2.800 at the end" in told
    assert "weights of step 5 are kept" in told
