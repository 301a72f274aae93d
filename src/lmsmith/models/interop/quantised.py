"""Unpack the numbers of GGUF files.

Three kinds of blocks are unpacked here, since files of small models mostly consist of them and
speed matters; the package gguf unpacks all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError

AT_ONCE = 1 << 15
"""Blocks unpacked together: their numbers fit the L2 cache."""


Unpack = Callable[[Tensor, Tensor], None]
"""Writes the numbers of blocks (blocks, bytes) into float32 (blocks, numbers)."""


@dataclass(frozen=True)
class TensorType:
    """A way to pack numbers, with llama.cpp's name."""

    name: str
    block: int  # numbers that are packed together
    block_bytes: int
    unpack: Unpack | torch.dtype  # the type of numbers that are not packed

    def bytes_of(self, shape: tuple[int, ...], name: str) -> int:
        """Bytes of a tensor of this shape.

        Raises:
            UserError: its rows are not whole blocks.
        """
        if shape and shape[-1] % self.block:
            raise UserError(
                f"the tensor {name} has rows of {shape[-1]}, which {self.name} cannot pack",
                "fetch the file again",
            )
        return math.prod(shape) // self.block * self.block_bytes


def _unpack_8_bits(blocks_nb: Tensor, numbers_nk: Tensor) -> None:
    """Scale and 32 signed bytes: x = d·q."""
    torch.mul(blocks_nb[:, 2:].view(torch.int8), _half(blocks_nb, 0), out=numbers_nk)


def _unpack_4_bits(blocks_nb: Tensor, numbers_nk: Tensor, start: int = 2, zero: int = 8) -> None:
    """Scale and, from byte ``start``, 32 half bytes, first all low ones: x = d·(q − zero)."""
    scale_n1, packed_nk = _half(blocks_nb, 0), blocks_nb[:, start:]
    for half, quants_nk in enumerate((packed_nk & 15, packed_nk >> 4)):
        quants_nk = quants_nk.view(torch.int8) - zero
        torch.mul(quants_nk, scale_n1, out=numbers_nk[:, 16 * half : 16 * half + 16])


def _unpack_4_bits_with_least(blocks_nb: Tensor, numbers_nk: Tensor) -> None:
    """Scale, least number and 32 half bytes: x = d·q + m."""
    _unpack_4_bits(blocks_nb, numbers_nk, 4, 0)
    numbers_nk += _half(blocks_nb, 2)


def _half(blocks_nb: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, as float32 (blocks, 1)."""
    return blocks_nb[:, at : at + 2].contiguous().view(torch.float16).float()


TYPES: Mapping[int, TensorType] = {
    0: TensorType("F32", 1, 4, torch.float32),
    1: TensorType("F16", 1, 2, torch.float16),
    2: TensorType("Q4_0", 32, 18, _unpack_4_bits),
    3: TensorType("Q4_1", 32, 20, _unpack_4_bits_with_least),
    8: TensorType("Q8_0", 32, 34, _unpack_8_bits),
    28: TensorType("F64", 1, 8, torch.float64),
    30: TensorType("BF16", 1, 2, torch.bfloat16),
}
"""Number in the file → type; the package gguf unpacks the others."""


MULTIPLIED: Mapping[str, int] = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
"""Types that the C++ kernels multiply as they are → number in the file."""


def tensor_type(number: int, name: str) -> TensorType:
    """The type of that number, of the tensor ``name``.

    Raises:
        UserError: it cannot be unpacked, or only with the package gguf.
    """
    if number in TYPES:
        return TYPES[number]
    try:
        from gguf import constants, quants
    except ImportError as error:
        raise UserError(
            f"the tensor {name} is of type {number} that only the package gguf can unpack",
            'pip install "lmsmith[gguf]"',
        ) from error
    try:
        kind = constants.GGMLQuantizationType(number)
        block, size = constants.GGML_QUANT_SIZES[kind]
        quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"the tensor {name} is of type {number}, which cannot be unpacked",
            "fetch another file of this model: F16, Q8_0 and the K types can be read",
        ) from error

    def unpack(blocks_nb: Tensor, numbers_nk: Tensor) -> None:
        numbers_nk.copy_(torch.from_numpy(quants.dequantize(blocks_nb.numpy(), kind)))

    return TensorType(kind.name, block, size, unpack)


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as a file packs it."""

    type: TensorType
    shape: tuple[int, ...]  # (rows, columns), as in PyTorch
    data: Tensor  # its bytes, uint8; where it was read from a file, those of the mapped file

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its numbers, in memory of their own."""
        return dequantise(self.data, self.type, self.shape, dtype)


def dequantise(
    data: Tensor, kind: TensorType, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The numbers of a tensor whose bytes (uint8) are ``data``."""
    if isinstance(kind.unpack, torch.dtype):
        if data.storage_offset() % kind.block_bytes:  # a file with an alignment of its own
            data = data.clone()
        return data.view(kind.unpack).reshape(shape).to(dtype, copy=True)
    numbers = torch.empty(math.prod(shape), dtype=dtype)
    blocks_nb = data.view(-1, kind.block_bytes)
    numbers_nk = numbers.view(-1, kind.block)
    for start in range(0, len(blocks_nb), AT_ONCE):
        part_nb, target_nk = (t[start : start + AT_ONCE] for t in (blocks_nb, numbers_nk))
        if dtype == torch.float32:
            kind.unpack(part_nb, target_nk)
        else:
            wide_nk = torch.empty(target_nk.shape, dtype=torch.float32)
            kind.unpack(part_nb, wide_nk)
            target_nk.copy_(wide_nk)
    return numbers.view(shape)
