"""Muon against PyTorch's own, and against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from lmsmith.training.muon import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_in_bfloat16_it_is_pytorchs_bit_for_bit(seed: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    steps = (
        Muon([ours], dtype=torch.bfloat16, **settings),
        torch.optim.Muon([theirs], **settings),
    )
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimiser in steps:
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_singular_vectors_stay_and_values_follow_the_polynomial(
    seed: int, shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        values = a * values + b * values**3 + c * values**5
    found = orthogonalise(matrix, torch.float32)
    torch.testing.assert_close(found.double(), u @ torch.diag(values) @ v, rtol=0, atol=2e-5)


def test_it_goes_on_from_pytorchs_state(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(8, 8, generator=generator).requires_grad_()
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    theirs = torch.optim.Muon([matrix], **settings)
    matrix.grad = torch.randn(8, 8, generator=generator)
    theirs.step()
    ours = Muon([matrix], dtype=torch.float32, **settings)
    ours.load_state_dict(theirs.state_dict())
    (before,) = (state["momentum_buffer"].clone() for state in ours.state.values())
    torch.testing.assert_close(before, 0.05 * matrix.grad)
    ours.step()
