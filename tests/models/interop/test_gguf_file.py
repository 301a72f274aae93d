"""GGUF files: read back as written, unpacked like the package gguf, refused when damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.models.interop.gguf_file import open_gguf, pack, write_gguf
from lmsmith.models.interop.quantised import dequantise, tensor_type

gguf = pytest.importorskip("gguf")

TYPES = [
    kind
    for kind in gguf.GGMLQuantizationType
    if kind in gguf.quants._type_traits and kind.name != "BF16"
]
METADATA = {
    "a.text": "Ünïcode\n",
    "a.number": 7,
    "a.share": 0.25,
    "a.truth": True,
    "a.texts": ["a", "", "嗨"],
    "a.numbers": [1, -2, 3],
    "a.shares": [0.5, -1.0],
}


def fresh(*shape: int) -> Tensor:
    return torch.randn(*shape)


@pytest.fixture
def tensors() -> list[tuple[str, Tensor]]:
    return [("matrix.weight", fresh(5, 64)), ("odd.weight", fresh(3, 24)), ("row.bias", fresh(7))]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_what_is_written_is_read(
    kind: str, tmp_path: Path, tensors: list[tuple[str, Tensor]]
) -> None:
    path = tmp_path / "deep" / "model.gguf"
    write_gguf(path, "tiny", METADATA, tensors, kind)
    assert [each.name for each in path.parent.iterdir()] == ["model.gguf"]
    file = open_gguf(path)
    assert file.metadata["general.architecture"] == "tiny"
    assert {key: file.metadata[key] for key in METADATA} == METADATA
    spacing = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "q8_0": 2**-6}[kind]
    for name, tensor in tensors:
        read = file.tensors[name].read()
        assert read.shape == tensor.shape
        allowed = 0.0 if tensor.dim() == 1 else spacing * float(tensor.abs().max())
        assert float((read - tensor).abs().max()) <= allowed
    assert file.tensors["odd.weight"].type.name == ("F16" if kind == "q8_0" else kind.upper())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_the_package_gguf_reads_the_same(
    kind: str, tmp_path: Path, tensors: list[tuple[str, Tensor]]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "tiny", METADATA, tensors, kind)
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    for key in METADATA:
        assert theirs.fields[key].contents() == ours.metadata[key]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.tensors[tensor.name].read().numpy(), expected)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type_is_unpacked_as_the_package_does(
    seed: int, kind: gguf.GGMLQuantizationType
) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (3, 2 * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind)
        ours = tensor_type(int(kind), "t")
        numbers = dequantise(
            torch.from_numpy(data.copy()).flatten(), ours, (3, 2 * block), torch.float32
        )
    assert (ours.name, ours.block, ours.block_bytes) == (kind.name, block, size)
    assert np.array_equal(numbers.numpy(), expected, equal_nan=True)


def test_a_smaller_type_is_the_rounded_one() -> None:
    kind = tensor_type(8, "t")
    data = torch.from_numpy(pack(fresh(40, 64), "q8_0").reshape(-1))
    wide = dequantise(data, kind, (40, 64), torch.float32)
    assert torch.equal(dequantise(data, kind, (40, 64), torch.bfloat16), wide.bfloat16())


def test_a_damaged_file_is_refused(
    seed: int, tmp_path: Path, tensors: list[tuple[str, Tensor]]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "tiny", METADATA, tensors, "f32")
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (4, 20, 60, len(whole) // 2, len(whole) - 8):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged or cut off|cannot be read|GGUF 0"):
            open_gguf(cut)
    random = np.random.default_rng(seed)
    for _ in range(40):  # whatever a byte becomes: an answer, or one message
        damaged = bytearray(whole)
        damaged[random.integers(4, 400)] = random.integers(256)
        cut.write_bytes(damaged)
        try:
            open_gguf(cut)
        except UserError as error:
            assert error.fix  # noqa: PT017


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(UserError, match="cannot be read"):
        open_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        open_gguf(path)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match="not a GGUF file"):
        open_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(64))
    with pytest.raises(UserError, match="other byte order"):
        open_gguf(path)
    write_gguf(path, "tiny", {"split.count": 3}, [("a", fresh(2))])
    with pytest.raises(UserError, match="one of 3 parts"):
        open_gguf(path)


def test_numbers_too_large_for_f16_are_named() -> None:
    with pytest.raises(UserError, match=r"blk.0 has numbers too large for f16\n.*bf16"):
        pack(torch.full((2, 32), 1e6), "f16", "blk.0")
