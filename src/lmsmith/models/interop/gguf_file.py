"""Read and write GGUF files, as F32, F16, BF16 or Q8_0.

The package gguf needs seconds to read a vocabulary of 49,152 (docs/decisions/010). The layout is
that of the specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_file, require_file
from lmsmith.models.interop.quantised import PackedTensor, tensor_type
from lmsmith.models.weights_file import MOST_DIMENSIONS, MOST_TENSORS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Alignment of tensors in a file without ``general.alignment``."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS |= {12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 1 << 22
"""Items of all lists of the metadata; a vocabulary of 256,000 with its merges has 1.3 million."""

_MOST_VALUES = 1 << 16
"""Metadata; published files have up to a hundred."""


@dataclass(frozen=True)
class GgufFile:
    """Metadata by key, and tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, PackedTensor]


def open_gguf(path: Path) -> GgufFile:
    """Read the metadata of a GGUF file and map its tensors into memory.

    Raises:
        UserError: it is missing, is not GGUF of a known version and byte order, is one of several
            parts, or ends too early.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise UserError(f"{path}: cannot be read ({error})", "name a GGUF file") from error
    if data[:4] != MAGIC:
        raise UserError(f"{path}: not a GGUF file", "name a file that ends in .gguf")
    version = int.from_bytes(data[4:8], "little")
    if version not in VERSIONS:
        swapped = version and not version & 0xFFFF
        what = "written for the other byte order" if swapped else f"GGUF {version}"
        raise UserError(
            f"{path}: {what}; versions {' and '.join(map(str, VERSIONS))} can be read",
            "fetch a newer file of this model",
        )
    try:
        return _parse(data, path)
    except (struct.error, ValueError, TypeError, OverflowError, _Damaged) as error:
        raise UserError(f"{path}: the file is damaged or cut off", "fetch it again") from error


class _Damaged(Exception):
    """A length leads beyond the end of the file, or a value that cannot be."""


def _parse(data: mmap.mmap, path: Path) -> GgufFile:
    cursor = _Cursor(data, 8)
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > MOST_TENSORS or value_count > _MOST_VALUES:
        raise _Damaged
    metadata = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise _Damaged
        metadata[key] = cursor.value(cursor.number("I"))
    if metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {metadata['split.count']} parts",
            "join them first: llama-gguf-split --merge",
        )
    places = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("I")
        if dimensions > MOST_DIMENSIONS or name in places:
            raise _Damaged
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        places[name] = (shape, cursor.number("I"), cursor.number("Q"))
    alignment = int(metadata.get("general.alignment", ALIGNMENT)) or ALIGNMENT
    start = -(-cursor.at // alignment) * alignment
    whole = torch.frombuffer(data, dtype=torch.uint8)
    left = len(data) - start  # tensors that share bytes would need more memory than the file has
    tensors = {}
    for name, (shape, number, offset) in places.items():
        kind = tensor_type(number, name)
        size = kind.bytes_of(shape, name)
        left -= size
        if start + offset + size > len(data) or left < 0:
            raise _Damaged
        tensors[name] = PackedTensor(kind, shape, whole[start + offset : start + offset + size])
    return GgufFile(metadata, tensors)


class _Cursor:
    """A position in the file that advances with each read. Numbers are little-endian."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data, self.at, self._end = data, at, len(data)
        self._items = _MOST_ITEMS

    def number(self, kind: str) -> Any:
        size = struct.calcsize(f"<{kind}")
        (found,) = struct.unpack_from(f"<{kind}", self._data, self.at)
        self.at += size
        return found

    def numbers(self, kind: str, count: int) -> list[Any]:
        dtype = np.dtype(f"<{kind}")
        if count > (self._end - self.at) // dtype.itemsize:
            raise _Damaged
        found = np.frombuffer(self._data, dtype, count, self.at) if count else np.empty(0)
        self.at += found.nbytes
        return list(found.tolist())

    def text(self) -> str:
        start = self.at + 8
        end = start + int.from_bytes(self._data[self.at : start], "little")
        if end > self._end:
            raise _Damaged
        self.at = end
        return self._data[start:end].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _Damaged
        inner, count = self.number("I"), self.number("Q")
        self._items -= count
        if self._items < 0:
            raise _Damaged
        if inner in _SCALARS:
            return self.numbers(_SCALARS[inner], count)
        if inner != _STRING or count > (self._end - self.at) // 8:  # no file has lists of lists
            raise _Damaged
        return [self.text() for _ in range(count)]


FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""Ways to pack matrices → llama.cpp's ``general.file_type``."""

_ALWAYS_F32 = ("position_embd.", "rope_freqs.")
Bytes = NDArray[np.uint8]


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    kind: str = "f16",
) -> None:
    """Write one file, atomically. Vectors and positions stay float32, as llama.cpp expects.

    Args:
        path: of the file.
        architecture: llama.cpp's name.
        metadata: int, float, bool, str, and lists of one of them.
        tensors: names and weights, dimensions as in PyTorch.
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
                if key != "general.architecture":  # the writer adds it
                    getattr(writer, _ADDERS.get(type(value), "add_array"))(key, value)
            for name, tensor in held:
                type_ = GGMLQuantizationType[kinds[name].upper()]
                size = packed_bytes(tensor.shape, kinds[name])
                shape = [*tensor.shape[:-1], size // max(1, tensor.numel() // tensor.shape[-1])]
                writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, type_)
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


_ADDERS = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
