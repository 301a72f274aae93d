"""Weights rounded to 8 bits for reading: half the memory of bf16, and so half the time."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Weights of a row that share a scale, where a row has a whole number of such groups; a multiple of
the 32 that the kernels take at a time."""


def quantise_int8(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits, symmetrically, each group of a row by its largest absolute value.

    value = round(w / scale), scale = max |w| / 127 over the group.

    Args:
        weight: (outputs, inputs).
        group: inputs that share a scale; a whole row's where it does not divide them.

    Returns:
        values: int8 (outputs, inputs).
        scales: float32 (outputs, inputs / group).
    """
    outputs, inputs = weight.shape
    size = group if inputs % group == 0 else inputs
    grouped = weight.float().view(outputs, inputs // size, size)
    scales = grouped.abs().amax(dim=-1) / 127
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales)
    values = (grouped / divisor[..., None]).round().to(torch.int8)
    return values.view(outputs, inputs), scales.contiguous()
