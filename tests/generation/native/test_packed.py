"""Matrices as GGUF files pack them: their numbers, and the kernels' products of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kernels import TorchKernels
from lmsmith.generation.native.operations import NativeKernels
from lmsmith.generation.weights import Weight, read_packed
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.quantised import MULTIPLIED, PackedTensor
from lmsmith.models.presets import llama
from lmsmith.training.machine import resolve_machine
from packed_tensors import random_packed

pytest.importorskip("gguf")

BF16 = resolve_machine(MachineConfig(precision="bf16"))


def as_float(tensors: Sequence[PackedTensor]) -> Tensor:
    return torch.cat([each.read() for each in tensors])


SHAPES = [(256, 5), (512, 64), (768, 33), (1536, 150)]


@pytest.mark.parametrize("name", MULTIPLIED)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_panels_hold_the_numbers_of_the_file(
    kernels: NativeKernels, name: str, inputs: int, outputs: int
) -> None:
    tensor = random_packed(name, outputs, inputs)
    expected = tensor.read()
    plain = read_packed([tensor], None, torch.bfloat16)
    assert torch.equal(plain.as_dtype(torch.float32), expected)
    panels = kernels.prepare(plain)
    assert panels.in_panels
    assert torch.equal(panels.as_dtype(torch.float32), expected)
    rows = torch.tensor([outputs - 1, 0, 3])
    assert torch.equal(panels.rows(rows), expected[rows])
    assert torch.equal(kernels.rows(panels, rows), expected[rows])
    assert kernels.rows(panels, torch.tensor([outputs])).isnan().all()


@pytest.mark.parametrize("name", MULTIPLIED)
def test_panels_are_not_larger_than_the_file(kernels: NativeKernels, name: str) -> None:
    """Six bits are held in eight; steps of six bits in eight."""
    tensor = random_packed(name, 64, 512)
    weight = kernels.prepare(read_packed([tensor], None, torch.bfloat16))
    more = {"Q6_K": 274 / 210, "Q4_K": 148 / 144}.get(name, 1.0)
    assert weight.bytes == round(tensor.data.numel() * more)


def bound_of(x: Tensor, exact: Tensor, smallest: Tensor) -> Tensor:
    """Most that float32's sums and x in 16 bits, each 32 by their largest, change of x Wᵀ.

    ``smallest`` bounds |q d| + |m|, of which a product is made.
    """
    steps = x.unflatten(1, (-1, 32)).abs().amax(2) / 32767
    rounding = steps / 2 @ exact.unflatten(1, (-1, 32)).abs().sum(2).T
    return rounding + 2**-17 * (x.abs() @ smallest.T + 1e-3)


def parts_of_numbers(tensor: PackedTensor, exact: Tensor) -> Tensor:
    """A bound of |q d| + |m| of each number."""
    spread = exact.unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, dim=1)
    return 3 * spread


@pytest.mark.parametrize("name", MULTIPLIED)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products(
    kernels: NativeKernels, name: str, inputs: int, outputs: int, with_bias: bool
) -> None:
    """x Wᵀ + b in float64 of the file's numbers; a row's bits are the same in any company."""
    tensor = random_packed(name, outputs, inputs)
    exact = tensor.read().double()
    bias = torch.randn(outputs) if with_bias else None
    weight = kernels.prepare(read_packed([tensor], bias, torch.bfloat16))
    x = torch.randn(131, inputs).bfloat16()
    x[5, 3] = 300.0  # the others of its unit are small beside it
    x[6] = 0.0
    whole = kernels.linear(x, weight, torch.float32)
    wide = x.double()
    expected = torch.nn.functional.linear(wide, exact, None if bias is None else bias.double())
    bound = bound_of(wide, exact, parts_of_numbers(tensor, exact))
    assert bool(((whole.double() - expected).abs() <= bound).all())
    for rows, threads in ((1, 1), (1, 2), (2, 1), (3, 1), (5, 2), (6, 1), (7, 1), (17, 2), (33, 2)):
        torch.set_num_threads(threads)
        assert torch.equal(kernels.linear(x[:rows], weight, torch.float32), whole[:rows])
        alone = kernels.linear(x[rows : rows + 1], weight, torch.float32)
        assert torch.equal(alone, whole[rows : rows + 1])
    half = kernels.linear(x, weight, torch.bfloat16)
    assert torch.equal(half, whole.bfloat16())
    stream = torch.randn(131, outputs)
    added = kernels.linear(x, weight, torch.bfloat16, add_to=stream.clone())
    assert torch.equal(added, stream + half.float())


def test_what_is_not_finite_stays_so(kernels: NativeKernels) -> None:
    for name in MULTIPLIED:
        tensor = random_packed(name, 20, 256)
        weight = kernels.prepare(read_packed([tensor], None, torch.bfloat16))
        for bad in (math.nan, math.inf):
            x = torch.randn(3, 256).bfloat16()
            x[1, 70] = bad
            found = kernels.linear(x, weight, torch.float32)
            assert found[[0, 2]].isfinite().all()
            assert not found[1].isfinite().any()


def test_types_that_differ_are_one_matrix(kernels: NativeKernels) -> None:
    """Outputs of each part stand side by side; types that are not multiplied are bf16."""
    names = ["Q4_K", "Q4_K", "Q6_K", "Q5_0", "F16"]
    tensors = [random_packed(name, 24 + 8 * i, 512, i) for i, name in enumerate(names)]
    exact = as_float(tensors)
    bias = torch.randn(len(exact))
    plain = read_packed(tensors, bias, torch.bfloat16)
    weight = kernels.prepare(plain)
    assert weight.packings == {"Q4_K", "Q6_K"}
    assert weight.outputs == len(exact)
    torch.testing.assert_close(weight_numbers(plain), exact, rtol=2**-8, atol=0)
    x = torch.randn(9, 512).bfloat16()
    found = kernels.linear(x, weight, torch.bfloat16)
    torch.testing.assert_close(found.float(), x.float() @ exact.T + bias, rtol=2**-7, atol=5e-2)
    torch.testing.assert_close(
        TorchKernels().linear(x, plain, torch.bfloat16).float(), found.float(), rtol=2e-2, atol=0.1
    )
    assert torch.equal(kernels.linear(x[4:5], weight, torch.bfloat16), found[4:5])


def weight_numbers(weight: Weight) -> Tensor:
    return weight.as_dtype(torch.float32)


TINY = llama(2, 256, 4, 2, 512, 200)
MIXED = {"query_key_value": ("Q4_K", "Q4_K", "Q6_K"), "output": ("Q4_1",), "inner": ("Q4_0",)}


def packed_decoder(config: ModelConfig, table: str) -> tuple[Decoder, Decoder]:
    """A decoder with packed matrices of several types, and the float32 one of the same numbers."""
    plain = Decoder(config).eval()
    shapes = {name: each.shape for name, each in plain.named_parameters() if each.dim() == 2}
    packed, state = {}, dict(plain.state_dict())
    for seed, (name, shape) in enumerate(shapes.items()):
        kinds = MIXED.get(name.split(".")[-2], ("Q8_0",))
        if name in ("token_embedding.weight", "unembedding.weight"):
            kinds = (table,)
        rows = [shape[0]]
        if len(kinds) == 3:
            shared = config.resolved_kv_heads * config.width_per_head
            rows = [shape[0] - 2 * shared, shared, shared]
        packed[name] = [
            random_packed(kind, count, shape[1], 9 * seed + i)
            for i, (kind, count) in enumerate(zip(kinds, rows, strict=True))
        ]
        state[name] = as_float(packed[name])
    with torch.no_grad():
        plain.load_state_dict(state)
        other = Decoder(config).eval()
        other.load_state_dict(state)
        for name, parameter in list(other.named_parameters()):
            if name in packed:
                module = other.get_submodule(name.rpartition(".")[0])
                meta = torch.empty_like(parameter, device="meta")
                module.weight = torch.nn.Parameter(meta)
    other.packed = packed
    return other, plain


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("table", ["Q6_K", "Q5_0"])
def test_a_whole_model(kernels: NativeKernels, table: str, tied: bool) -> None:
    """Logits are as near those of float32 as with the same numbers in bf16; a token has the same
    bits alone and in a prompt, in one call and operation by operation."""
    config = replace(TINY, vocabulary_size=100, tied_embeddings=tied)
    packed, plain = packed_decoder(config, table)
    model = InferenceDecoder(packed)
    tokens = torch.randint(100, (40,)).tolist()

    def logits(of: InferenceDecoder, at_once: int) -> Tensor:
        cache = of.new_cache(1, 64)
        row, found = cache.open(), []
        for start in range(0, len(tokens), at_once):
            found.append(of.logits(of.read([(row, tokens[start : start + at_once])], cache)))
        return torch.cat(found)

    found, exact = logits(model, 40), logits(InferenceDecoder(plain), 40)
    rounded = logits(InferenceDecoder(plain, BF16), 40)
    assert float((found - exact).std()) < 1.5 * float((rounded - exact).std())
    assert torch.equal(found, logits(model, 1))
    stack, model._stack = model._stack, None
    assert stack is not None
    assert torch.equal(found, logits(model, 40))
    state = model.decoder.state_dict()
    assert all(
        torch.allclose(each, state[name], rtol=2**-8) for name, each in plain.state_dict().items()
    )
    assert model.held_bytes < 0.5 * 4 * config.parameters
