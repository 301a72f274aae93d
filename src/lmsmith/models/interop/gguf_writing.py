"""Write GGUF files: F32, F16, BF16 or Q8_0, so that llama.cpp runs a model trained here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_file

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""Ways to pack matrices, with llama.cpp's numbers of them (``general.file_type``)."""

_ALWAYS_F32 = ("position_embd.", "rope_freqs.")
Bytes = NDArray[np.uint8]


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    kind: str = "f16",
) -> None:
    """Write one file, atomically. Vectors and positions stay float32, as llama.cpp wants them.

    Args:
        path: of the file.
        architecture: llama.cpp's name of it.
        metadata: whole numbers, decimals, truth values, texts, and lists of one of them.
        tensors: names and weights, as PyTorch counts dimensions.
        kind: one of `FILE_TYPES`. Rows that q8_0 cannot pack, not multiples of 32, become f16.

    Raises:
        UserError: the package gguf is missing, a number is too large for f16, or the file cannot
            be written.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise UserError(
            "writing GGUF needs the package gguf", 'pip install "lmsmith[gguf]"'
        ) from error
    held = list(tensors)
    kinds = {name: kind_of(name, tensor, kind) for name, tensor in held}
    with atomic_file(path) as partial:
        writer = GGUFWriter(partial, architecture)
        try:
            for key, value in {**metadata, "general.file_type": FILE_TYPES[kind]}.items():
                _add(writer, key, value)
            for name, tensor in held:
                packed_as = GGMLQuantizationType[kinds[name].upper()]
                size = packed_bytes(tensor.shape, kinds[name])
                shape = [*tensor.shape[:-1], size // max(1, tensor.numel() // tensor.shape[-1])]
                writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, packed_as)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in held:
                writer.write_tensor_data(pack(tensor, kinds[name], name))
        finally:
            writer.close()


def kind_of(name: str, tensor: Tensor, kind: str) -> str:
    """How a tensor is packed in a file of that kind."""
    if tensor.dim() < 2 or name.startswith(_ALWAYS_F32):
        return "f32"
    return "f16" if kind == "q8_0" and tensor.shape[-1] % 32 else kind


def packed_bytes(shape: Iterable[int], kind: str) -> int:
    """Bytes that a tensor takes."""
    count = int(np.prod([*shape]))
    return count // 32 * 34 if kind == "q8_0" else count * {"f32": 4, "f16": 2, "bf16": 2}[kind]


def pack(tensor: Tensor, kind: str, name: str = "a tensor") -> Bytes:
    """The numbers as bytes, one row of bytes a row.

    Raises:
        UserError: one is too large for f16.
    """
    tensor = tensor.detach().contiguous()
    if kind == "q8_0":
        from gguf import GGMLQuantizationType, quants

        packed: Bytes = quants.quantize(tensor.float().numpy(), GGMLQuantizationType.Q8_0)
        return packed
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    cast = tensor.to(dtype)
    if kind == "f16" and bool((cast.isinf() & tensor.isfinite()).any()):
        raise UserError(f"{name} has numbers too large for f16", "export with --type bf16")
    plain: Bytes = cast.view(torch.uint8).numpy()
    return plain


def _add(writer: Any, key: str, value: Any) -> None:
    if key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
