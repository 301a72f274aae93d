"""Unpack the numbers of GGUF files.

Three kinds of blocks are unpacked here, since files of small models mostly consist of them and
speed matters; the package gguf unpacks all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError

AT_ONCE = 1 << 15
"""Blocks unpacked together: their numbers fit the L2 cache."""


@dataclass(frozen=True)
class TensorType:
    """A way to pack numbers.

    Attributes:
        number: in the file.
        name: llama.cpp's.
        block: numbers that are packed together.
        block_bytes: size of a block.
    """

    number: int
    name: str
    block: int
    block_bytes: int

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


PLAIN: Mapping[int, tuple[TensorType, torch.dtype]] = {
    0: (TensorType(0, "F32", 1, 4), torch.float32),
    1: (TensorType(1, "F16", 1, 2), torch.float16),
    28: (TensorType(28, "F64", 1, 8), torch.float64),
    30: (TensorType(30, "BF16", 1, 2), torch.bfloat16),
}
"""Types without blocks."""


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


BLOCKS: Mapping[int, tuple[TensorType, Callable[[Tensor, Tensor], None]]] = {
    2: (TensorType(2, "Q4_0", 32, 18), _unpack_4_bits),
    3: (TensorType(3, "Q4_1", 32, 20), _unpack_4_bits_with_least),
    8: (TensorType(8, "Q8_0", 32, 34), _unpack_8_bits),
}
"""Types unpacked here."""


def tensor_type(number: int, name: str) -> TensorType:
    """The type of that number, of the tensor ``name``.

    Raises:
        UserError: it cannot be unpacked, or only with the package gguf.
    """
    if number in PLAIN:
        return PLAIN[number][0]
    if number in BLOCKS:
        return BLOCKS[number][0]
    constants, quants = _gguf(f"the tensor {name} is of type {number}")
    try:
        kind = constants.GGMLQuantizationType(number)
        block, size = constants.GGML_QUANT_SIZES[kind]
        quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"the tensor {name} is of type {number}, which cannot be unpacked",
            "fetch another file of this model: F16, Q8_0 and the K types can be read",
        ) from error
    return TensorType(number, kind.name, block, size)


def dequantise(
    data: Tensor, kind: TensorType, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The numbers of a tensor whose bytes (uint8) are ``data``."""
    if kind.number in PLAIN:
        if data.storage_offset() % kind.block_bytes:  # a file with an alignment of its own
            data = data.clone()
        return data.view(PLAIN[kind.number][1]).reshape(shape).to(dtype, copy=True)
    numbers = torch.empty(math.prod(shape), dtype=dtype)
    blocks_nb = data.view(-1, kind.block_bytes)
    numbers_nk = numbers.view(-1, kind.block)
    unpack = BLOCKS[kind.number][1] if kind.number in BLOCKS else _by_gguf(kind)
    for start in range(0, len(blocks_nb), AT_ONCE):
        part_nb, target_nk = (t[start : start + AT_ONCE] for t in (blocks_nb, numbers_nk))
        if dtype == torch.float32:
            unpack(part_nb, target_nk)
        else:
            wide_nk = torch.empty(target_nk.shape, dtype=torch.float32)
            unpack(part_nb, wide_nk)
            target_nk.copy_(wide_nk)
    return numbers.view(shape)


def _by_gguf(kind: TensorType) -> Callable[[Tensor, Tensor], None]:
    constants, quants = _gguf(f"{kind.name} is packed in a way")
    theirs = constants.GGMLQuantizationType(kind.number)

    def unpack(blocks_nb: Tensor, numbers_nk: Tensor) -> None:
        numbers_nk.copy_(torch.from_numpy(quants.dequantize(blocks_nb.numpy(), theirs)))

    return unpack


def _gguf(what: str) -> tuple[Any, Any]:
    try:
        from gguf import constants, quants
    except ImportError as error:
        raise UserError(
            f"{what} that only the package gguf can unpack", 'pip install "lmsmith[gguf]"'
        ) from error
    return constants, quants
