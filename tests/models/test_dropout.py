"""Dropout: how many numbers stay, what they become, and where the gradient goes."""

from __future__ import annotations

import pytest
import torch

from lmsmith.models.dropout import Dropout, drop, kept_numbers


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_so_many_numbers_are_dropped_and_the_mean_stays(probability: float) -> None:
    torch.manual_seed(1)
    count = 400_001
    values = drop(torch.ones(count), probability)
    dropped = int((values == 0).sum())
    deviation = (count * probability * (1 - probability)) ** 0.5
    assert abs(dropped - count * probability) < 4 * deviation
    kept = values[values != 0]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4, atol=0.0
    )


def test_each_number_is_drawn_on_its_own() -> None:
    torch.manual_seed(2)
    kept = kept_numbers(torch.Size([1_000, 4, 64]), 0.5).float() - 0.5
    for step in (1, 2, 3, 4, 64):  # four numbers share a draw
        flat = kept.flatten()
        together = float((flat[step:] * flat[:-step]).mean()) * 4
        assert abs(together) < 4 / len(flat) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_goes_where_the_numbers_stayed(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.randn(33, 7, dtype=dtype, requires_grad=True)
    y = drop(x, 0.3)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.dtype == gradient.dtype == dtype
    assert torch.equal(gradient == 0, y == 0)
    torch.testing.assert_close(y, x * gradient)


def test_the_seed_decides_and_draws_differ() -> None:
    x = torch.ones(5_000)
    torch.manual_seed(4)
    first, second = drop(x, 0.2), drop(x, 0.2)
    torch.manual_seed(4)
    assert torch.equal(first, drop(x, 0.2))
    assert not torch.equal(first, second)


def test_the_ends() -> None:
    x = torch.randn(1_000)
    assert drop(x, 0.0) is x
    assert int((drop(x, 0.999_999) != 0).sum()) < 3
    module = Dropout(0.5)
    assert module.eval()(x) is x
    assert not torch.equal(module.train()(x), x)
    assert drop(torch.ones(0, 3), 0.5).shape == (0, 3)
