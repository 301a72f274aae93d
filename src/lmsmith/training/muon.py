"""Muon: gradient descent whose update of a matrix is orthogonalised (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lmsmith.training.sharding import divided_like, whole

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients a, b, c of a step X ← aX + (bA + cA²)X with A = XXᵀ."""

NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """UVᵀ of a matrix USVᵀ, roughly: its singular values become about 0.7 to 1.2.

    Args:
        matrix: of any two lengths, in any type.
        dtype: of the products, and of the result. Five steps in bfloat16 are exact enough; where
            the processor has no products of that type they take six times as long as float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if tall else x
    x = x.div_(x.norm().clamp(min=1e-7))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum as Nesterov's, orthogonalised; a tall matrix has a rate of √(rows / columns).

    It differs from `torch.optim.Muon` in the type of the products alone, and reads its state.

    Args:
        params: matrices.
        dtype: as in `orthogonalise`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                # Each process orthogonalises all of a matrix that is divided, and keeps its part.
                mixed = whole(matrix.grad.lerp(buffer, momentum))
                update = divided_like(orthogonalise(mixed, self.dtype).to(matrix.dtype), matrix)
                rows, columns = matrix.shape
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)
