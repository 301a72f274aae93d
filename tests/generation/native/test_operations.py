"""The C++ kernels give what PyTorch gives, and the same bits whatever is computed with a row."""

from __future__ import annotations

import math

import pytest
import torch

from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.generation.native.operations import NativeKernels
from lmsmith.generation.weights import Norm, Weight, quantise_int8
from lmsmith.models.config import ModelConfig

TORCH = TorchKernels()


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(64, 8), (576, 33), (100, 7), (31, 5), (128, 64), (192, 150), (65, 80), (1000, 112)],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(
    kernels: NativeKernels,
    kind: str,
    inputs: int,
    outputs: int,
    with_bias: bool,
) -> None:
    """x Wᵀ + b in float64 of the rounded weights; a row's bits are the same in any company."""
    matrix = torch.randn(outputs, inputs)
    bias = torch.randn(outputs) if with_bias else None
    values, scales = quantise_int8(matrix) if kind == "int8" else (matrix.bfloat16(), None)
    weight = Weight.in_rows(values, scales, bias)
    exact = weight.as_dtype(torch.float64)
    x = torch.randn(131, inputs).bfloat16()
    x[5, 3] = 300.0  # the others of its chunk are small beside it
    x[6] = 0.0
    weight = kernels.prepare(weight)
    whole = kernels.linear(x, weight, torch.float32)
    expected = torch.nn.functional.linear(
        x.double(), exact, None if bias is None else bias.double()
    )
    bound = 2**-17 * (x.double().abs() @ exact.abs().T + 1)  # float32's sums
    if kind == "int8":
        bound += sixteen_bits(x.double(), exact)
    assert bool(((whole.double() - expected).abs() <= bound).all())
    for rows, threads in (
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 1),
        (7, 1),
        (17, 2),
        (130, 1),
    ):
        torch.set_num_threads(threads)
        assert torch.equal(kernels.linear(x[:rows], weight, torch.float32), whole[:rows])
    half = kernels.linear(x, weight, torch.bfloat16)
    assert torch.equal(half, whole.bfloat16())
    stream = torch.randn(131, outputs)
    added = kernels.linear(x, weight, torch.bfloat16, add_to=stream.clone())
    assert torch.equal(added, stream + half.float())


def sixteen_bits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Most that rounding x to 16 bits, each 64 by their largest, changes of x Wᵀ."""
    spare = -x.shape[1] % 64
    x, weight = (torch.nn.functional.pad(each, (0, spare)) for each in (x, weight))
    steps = x.unflatten(1, (-1, 64)).abs().amax(2) / 32767
    return steps / 2 @ weight.unflatten(1, (-1, 64)).abs().sum(2).T


def test_what_is_not_finite_stays_so(kernels: NativeKernels) -> None:
    weight = kernels.prepare(Weight.in_rows(*quantise_int8(torch.randn(20, 128))))
    for bad in (float("nan"), float("inf")):
        x = torch.randn(3, 128).bfloat16()
        x[1, 70] = bad
        found = kernels.linear(x, weight, torch.float32)
        assert found[[0, 2]].isfinite().all()
        assert not found[1].isfinite().any()


def test_matrix_units_get_many_rows(kernels: NativeKernels) -> None:
    with_units = NativeKernels(kernels.library, matrix_units=True)
    plain = Weight.in_rows(torch.randn(48, 96).bfloat16(), None, torch.randn(48))
    weight = with_units.prepare(plain)
    x = torch.randn(20, 96).bfloat16()
    for rows in (3, 20):
        found = with_units.linear(x[:rows], weight, torch.float32)
        expected = kernels.linear(x[:rows], kernels.prepare(plain), torch.float32)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-2)
        assert torch.equal(found, expected) == (rows == 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 15, 16, 1023, 1041, 5000])
def test_log_sums(kernels: NativeKernels, count: int, dtype: torch.dtype) -> None:
    logits = (20 * torch.randn(5, count)).to(dtype)
    logits[1] = -3.0  # all are the largest: the first counts
    logits[2, -1] = 1000.0
    logits[3, 0] = -torch.inf if count > 1 else 0.0
    logits[4, count // 2] = torch.nan
    log_sum, best = kernels.log_sums(logits)
    torch.testing.assert_close(
        log_sum[:4], logits[:4].double().logsumexp(1).float(), rtol=1e-6, atol=1e-5
    )
    assert log_sum[4].isnan()
    assert best[:4].tolist() == logits[:4].argmax(1).tolist()
    assert TORCH.log_sums(logits[:4])[1].tolist() == best[:4].tolist()


@pytest.mark.parametrize("width", [8, 48, 50])
@pytest.mark.parametrize("centred", [True, False])
def test_norm(kernels: NativeKernels, width: int, centred: bool) -> None:
    x, weight = 3 * torch.randn(7, width) + 1, torch.randn(width)
    shift = torch.randn(width) if centred else None
    found = kernels.norm(x, Norm(weight, shift, 1e-5), torch.float32)
    torch.testing.assert_close(found, TORCH.norm(x, Norm(weight, shift, 1e-5), torch.float32))
    half = kernels.norm(x, Norm(weight, shift, 1e-5), torch.bfloat16)
    torch.testing.assert_close(half.float(), found, rtol=2**-8, atol=0)


@pytest.mark.parametrize("width", [1, 16, 37, 48, 63])
def test_gate(kernels: NativeKernels, width: int) -> None:
    """silu(gate) · inner in float64, but for two roundings to bf16."""
    both = (8 * torch.randn(19, 2 * width)).bfloat16()
    both[:5, 0] = torch.tensor([0.0, -0.0, -80.0, 300.0, -1e-3])
    gate, inner = both.double().chunk(2, dim=1)
    expected = gate / (1 + torch.exp(-gate)) * inner
    for each in (kernels, TORCH):
        found = each.gate(both)
        torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-30)
    assert torch.equal(kernels.gate(both[3:4]), kernels.gate(both)[3:4])


@pytest.mark.parametrize("width", [1, 16, 37, 64])
def test_gelu(kernels: NativeKernels, width: int) -> None:
    """½x(1 + tanh(√(2/π)(x + 0.044715x³))) in float64, but for its rounding to bf16."""
    x = (3 * torch.randn(19, width)).bfloat16()
    x[:5, 0] = torch.tensor([0.0, -0.0, -4.0, 300.0, -1e-3])
    wide = x.double()
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    expected = wide / (1 + torch.exp(-2 * inner))  # ½(1 + tanh u) = 1 / (1 + e^−2u)
    torch.testing.assert_close(kernels.gelu(x).double(), expected, rtol=2**-8, atol=1e-30)
    torch.testing.assert_close(TORCH.gelu(x).double(), expected, rtol=2**-7, atol=1e-6)
    assert torch.equal(kernels.gelu(x[3:4]), kernels.gelu(x)[3:4])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("width", [16, 20, 64, 128])
def test_attend(kernels: NativeKernels, width: int, window: int, turned: bool) -> None:
    """softmax(QKᵀ/√d)V in float32 of the same bf16 numbers: a prompt, a token after it, and one of
    another row; turned queries and keys are rounded once more."""
    heads, shared = 6, 2
    pattern = ("banded",) if window else ("dense",)
    config = ModelConfig(1, heads * width, heads, 128, 32, kv_heads=shared, head_width=width,
                         attention_pattern=pattern, window=window)  # fmt: skip
    half, wide = (PagedCache(config, 2, 4, dtype) for dtype in (torch.bfloat16, torch.float32))
    lengths = [0, 0]
    for spans in ([(0, 70), (1, 3)], [(0, 1), (1, 5)], [(1, 1), (0, 1)]):
        places = [(row, lengths[row], count) for row, count in spans]
        for row, count in spans:
            lengths[row] += count
            for cache in (half, wide):
                cache.extend(row, count)
        positions_n = torch.cat([torch.arange(start, start + n) for _, start, n in places]).int()
        rows_n = torch.cat([torch.full((n,), row) for row, _, n in places]).int()
        angles = positions_n[:, None] / 50 ** torch.linspace(0, 1, width // 2)
        rotation = (angles.cos(), angles.sin()) if turned else None
        where = Places(rows_n, positions_n, places, rotation)
        projected = torch.randn(len(rows_n), heads + 2 * shared, width).bfloat16()
        found = kernels.attend(projected, where, half.layers[0], heads).float()
        expected = TORCH.attend(projected.float(), where, wide.layers[0], heads)
        error = 2e-2 if turned else 2**-8
        torch.testing.assert_close(found, expected, rtol=error, atol=error / 4)


def test_int8_rounds_to_half_a_step_at_most() -> None:
    matrix = torch.randn(9, 128) * torch.rand(9, 1)
    matrix[3] = 0
    values, scales = quantise_int8(matrix)
    assert scales.shape[1] > 1 or values.shape == matrix.shape
    size = 128 // scales.shape[1]
    error = (Weight.in_rows(values, scales).as_dtype(torch.float32) - matrix).abs()
    assert bool((error <= scales.repeat_interleave(size, dim=1) / 2 + 1e-7).all())
