"""Matrices that stay as a GGUF file packs them: rows of its blocks, or panels of the C++ kernels.

A number is q · d · s + m: q has 4 or 8 bits, d is a float16 scale of 32 or 256 numbers, s a step
that divides it further where there is one, and m the least number where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmsmith.models.interop.quantised import MULTIPLIED, TensorType, dequantise

LANES, PANEL = 16, 4
"""Outputs of a block and blocks of a panel (native/panels.hpp)."""

UNIT = 32
"""Inputs of a step, or of two."""

_AT_ONCE = 1 << 20
"""Numbers of rows that are read together."""

_SHIFTS = torch.tensor([0, 16, 4, 20, 8, 24, 12, 28], dtype=torch.int32)
"""Places of the 8 numbers of 4 bits in 32 (native/packed.hpp)."""


def is_multiplied(kind: TensorType) -> bool:
    """Whether the C++ kernels multiply numbers of this type as they are."""
    return kind.name in MULTIPLIED


def has_four_bits(kind: TensorType) -> bool:
    """Whether a number is 4 bits; else it is 8."""
    return kind.name.startswith("Q4")


def has_steps(kind: TensorType) -> bool:
    """Whether the scale of 256 numbers is divided by a step of each 32 or 16."""
    return kind.name.endswith("K")


def has_minima(kind: TensorType) -> bool:
    """Whether numbers are counted from a least one."""
    return kind.name in ("Q4_1", "Q4_K")


def new_panels(
    kind: TensorType, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Values, scales, minima and steps of zeros, in panels."""
    outputs, inputs = -(-shape[0] // LANES) * LANES, shape[1]

    def zeros(size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(outputs * inputs // size, dtype=dtype)

    four, half = has_four_bits(kind), torch.float16
    return (
        zeros(8, torch.int32) if four else zeros(2, torch.int16),
        zeros(kind.block, half),
        zeros(kind.block, half) if has_minima(kind) else None,
        zeros(UNIT, torch.int16) if has_steps(kind) else None,
    )


def rows_of_blocks(kind: TensorType, inputs: int, blocks: Tensor) -> Callable[[Tensor], Tensor]:
    """A reader of rows by number, float32 (n, inputs), of a file's bytes."""
    bytes_rb = blocks.view(-1, inputs // kind.block * kind.block_bytes)
    return lambda rows_n: dequantise(
        bytes_rb[rows_n].flatten(), kind, (len(rows_n), inputs), torch.float32
    )


def read_rows(
    kind: TensorType,
    outputs: int,
    panels: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    rows_n: Tensor,
) -> Tensor:
    """Rows of a matrix in panels, float32 (n, inputs); the numbers of `dequantise`, to the bit."""
    values, scales, minima, steps = (
        None if each is None else rows_of_panels(each, outputs, rows_n) for each in panels
    )
    assert values is not None
    assert scales is not None
    count = len(rows_n)
    if has_four_bits(kind):
        numbers = ((values[..., None] >> _SHIFTS) & 15).view(count, -1).float()
    else:
        numbers = values.view(torch.int8).float()
    groups = scales.shape[1]
    scale, grouped = scales.float()[..., None], numbers.view(count, groups, -1)
    if steps is None:
        if kind.name == "Q4_0":
            grouped = grouped - 8
        result = grouped * scale
        return (result if minima is None else result + minima.float()[..., None]).flatten(1)
    step = steps.view(torch.int8).float().view(count, groups, -1)  # two of each unit
    if minima is None:
        scale = (scale * step)[..., None]
        return (scale * grouped.view(*scale.shape[:3], -1)).flatten(1)
    scale = (scale * step[..., ::2])[..., None]
    least = (minima.float()[..., None] * step[..., 1::2])[..., None]
    return (scale * grouped.view(*scale.shape[:3], -1) - least).flatten(1)


def all_rows(
    read: Callable[[Tensor], Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The whole matrix."""
    result = torch.empty(shape, dtype=dtype)
    step = max(1, _AT_ONCE // shape[1])
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        result[start:end] = read(torch.arange(start, end))
    return result


def rows_of_panels(panels: Tensor, outputs: int, rows_n: Tensor) -> Tensor:
    """Rows (n, columns) of numbers in panels (native/panels.hpp)."""
    blocks = -(-outputs // LANES)
    columns = panels.numel() // (blocks * LANES)
    block_n, lane_n = rows_n // LANES, rows_n % LANES
    start_n = block_n // PANEL * PANEL
    together_n = (blocks - start_n).clamp(max=PANEL)
    first_n = (start_n * columns + block_n - start_n) * LANES + lane_n
    place_nc = first_n[:, None] + torch.arange(columns) * (together_n * LANES)[:, None]
    # By index_select, which does not wake PyTorch's threads for a few rows.
    return panels.index_select(0, place_nc.flatten()).view(place_nc.shape)
