"""Random tensors as GGUF files pack them, and files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lmsmith.models.interop.gguf_file import GgufFile
from lmsmith.models.interop.quantised import MULTIPLIED, PackedTensor, tensor_type

NUMBERS = {"F32": 0, "F16": 1, "Q5_0": 6, **MULTIPLIED}


def random_packed(name: str, outputs: int, inputs: int, seed: int = 0) -> PackedTensor:
    """Random bits, but for the float16 scales and minima, which some are subnormal of."""
    kind = tensor_type(NUMBERS[name], name)
    generator = torch.Generator().manual_seed(seed)
    if name == "F16":
        numbers = 0.1 * torch.randn(outputs, inputs, generator=generator)
        return PackedTensor(kind, (outputs, inputs), numbers.half().view(torch.uint8).flatten())
    count = outputs * inputs // kind.block
    size = (count, kind.block_bytes)
    blocks = torch.randint(256, size, generator=generator, dtype=torch.uint8)

    def put(place: int, largest: float) -> None:
        numbers = largest * torch.rand(count, 1, generator=generator)
        numbers[0] = 3e-6
        blocks[:, place : place + 2] = numbers.half().view(torch.uint8)

    put(208 if name == "Q6_K" else 0, {"Q4_K": 5e-4, "Q6_K": 2e-5, "Q8_0": 1e-3}.get(name, 0.02))
    if name == "Q4_1":
        put(2, 0.15)
        blocks[:, 3] |= 128  # below 0, as they mostly are
    elif name == "Q4_K":
        put(2, 3.7e-3)
    return PackedTensor(kind, (outputs, inputs), blocks.flatten())


def write_packed(
    path: Path, file: GgufFile, replaced: Callable[[str, PackedTensor], PackedTensor]
) -> None:
    """A file like another one, with other tensors."""
    from gguf import GGMLQuantizationType, GGUFWriter

    from lmsmith.models.interop.gguf_file import _ADDERS

    writer = GGUFWriter(path, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        if key != "general.architecture":
            getattr(writer, _ADDERS.get(type(value), "add_array"))(key, value)
    for name, tensor in file.tensors.items():
        found = replaced(name, tensor)
        rows = found.data.view(*found.shape[:-1], -1).numpy()
        kind = GGMLQuantizationType[found.type.name]
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            writer.add_tensor(name, found.read(found.type.unpack).numpy())  # type: ignore[arg-type]
        else:
            writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
