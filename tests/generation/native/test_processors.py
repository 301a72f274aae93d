"""The kernels on processors that are not here: emulated by qemu, compiled by zig."""

from __future__ import annotations

import importlib.util
import math
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.generation.native.instructions import SETS
from lmsmith.generation.native.library import SOURCE
from lmsmith.generation.native.operations import NativeKernels, best_kernels
from lmsmith.generation.native.targets import FLAGS
from lmsmith.generation.weights import Norm, Weight, quantise_int8, read_packed
from lmsmith.models.config import ModelConfig
from lmsmith.models.interop.quantised import MULTIPLIED
from packed_tensors import random_packed

TORCH = TorchKernels()
SECONDS = 900
"""Guards a hang; zig compiles its C++ library at the first use."""

Argument = Tensor | int | float | None
Call = tuple[str, list[Argument]]


class Emulated:
    """An aarch64 processor."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "emulated"
        command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-O1"]
        command += ["-std=c++17", "-fno-math-errno", "-pthread", "-static"]
        command += ["-I", str(SOURCE.parent), "-o", str(self.program)]
        command.append(str(Path(__file__).with_name("emulated.cpp")))
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]

    def run(self, calls: list[Call]) -> None:
        """Make these calls; tensors then hold what the kernels wrote."""
        (self.folder / "calls").write_bytes(b"".join(packed(*call) for call in calls))
        command = [str(shutil.which("qemu-aarch64-static")), str(self.program), "calls", "results"]
        subprocess.run(command, check=True, cwd=self.folder, timeout=SECONDS)
        found = memoryview((self.folder / "results").read_bytes())
        for tensor in (each for _, words in calls for each in words if isinstance(each, Tensor)):
            part, found = found[: tensor.nbytes], found[tensor.nbytes :]
            tensor.view(torch.uint8).flatten().copy_(
                torch.frombuffer(bytearray(part), dtype=torch.uint8)
            )
        assert not found


def packed(name: str, words: list[Argument]) -> bytes:
    parts = [struct.pack("<I", len(name)), name.encode(), struct.pack("<I", len(words))]
    for each in words:
        if each is None:
            parts.append(b"n")
        elif isinstance(each, Tensor):
            data = each.contiguous().view(torch.uint8).numpy().tobytes()
            parts += [b"p", struct.pack("<Q", len(data)), data]
        elif isinstance(each, int):
            parts.append(struct.pack("<cq", b"i", each))
        else:
            parts.append(struct.pack("<cf", b"f", each))
    return b"".join(parts)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("zig is not installed: pip install ziglang")
    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("qemu is not installed: apt install qemu-user-static")
    return Emulated(tmp_path_factory.mktemp("emulated"))


def matrix_of(kind: str, inputs: int, outputs: int) -> Weight:
    matrix = torch.randn(outputs, inputs)
    if kind == "bf16":
        return Weight.in_rows(matrix.bfloat16(), None, torch.randn(outputs))
    if kind == "int8":
        return Weight.in_rows(*quantise_int8(matrix), torch.randn(outputs))
    return read_packed([random_packed(kind, outputs, inputs)], None, torch.bfloat16)


@pytest.mark.parametrize("kind", ["bf16", "int8", *MULTIPLIED])
def test_linear_on_arm(emulated: Emulated, kind: str) -> None:
    """x Wᵀ + b in float64; a row's bits are the same in any company."""
    kernels = best_kernels()
    if not isinstance(kernels, NativeKernels):
        pytest.skip("no C++ compiler here lays the weights out")
    if kind in MULTIPLIED:
        pytest.importorskip("gguf")
    torch.manual_seed(0)
    outputs, inputs = 70, 512
    plain, x = matrix_of(kind, inputs, outputs), torch.randn(13, inputs).bfloat16()
    weight, exact = kernels.prepare(plain), plain.as_dtype(torch.float64)
    parts = (weight.values, weight.scales, weight.bias, weight.minima, weight.steps)

    def product(rows: int, threads: int) -> tuple[Call, Tensor]:
        y = torch.zeros(rows, outputs)
        sizes = (inputs, outputs, weight.group, weight.matrix.packing)
        return ("linear", [x[:rows].clone(), *parts, y, rows, *sizes, 0, threads]), y

    sizes = ((13, 2), (1, 1), (2, 1), (6, 3), (7, 1))
    products = [product(rows, threads) for rows, threads in sizes]
    emulated.run([call for call, _ in products])
    whole = products[0][1]
    expected = x.double() @ exact.T + (0.0 if weight.bias is None else weight.bias.double())
    bound = 2.0**-13 * (x.double().abs() @ exact.abs().T + 1)
    assert bool(((whole.double() - expected).abs() <= bound).all())
    for _, part in products[1:]:
        assert torch.equal(part, whole[: len(part)])


def test_rows_on_arm(emulated: Emulated) -> None:
    torch.manual_seed(1)
    x, weight, shift = 3 * torch.randn(5, 70), torch.randn(70), torch.randn(70)
    both, logits = torch.randn(5, 2 * 70).bfloat16(), 9 * torch.randn(5, 1003)
    normed, centred = torch.zeros(5, 70), torch.zeros(5, 70)
    gated, bent = torch.zeros(5, 70).bfloat16(), torch.zeros(5, 140).bfloat16()
    sums, best = torch.zeros(5), torch.zeros(5, dtype=torch.int64)
    emulated.run([
        ("norm", [x, weight, None, normed, 5, 70, 1e-5, 0, 0, 2]),
        ("norm", [x, weight, shift, centred, 5, 70, 1e-5, 1, 0, 2]),
        ("gate", [both, gated, 5, 70, 2]),
        ("gelu", [both, bent, 5, 140, 2]),
        ("log_sums", [logits, sums, best, 5, 1003, 0, 2]),
    ])  # fmt: skip
    close = torch.testing.assert_close
    close(normed, TORCH.norm(x, Norm(weight, None, 1e-5), torch.float32), rtol=1e-5, atol=1e-5)
    close(centred, TORCH.norm(x, Norm(weight, shift, 1e-5), torch.float32), rtol=1e-5, atol=1e-5)
    close(gated, TORCH.gate(both), rtol=2**-7, atol=1e-6)
    close(bent, TORCH.gelu(both), rtol=2**-6, atol=1e-5)
    close(sums, logits.logsumexp(1), rtol=1e-6, atol=1e-5)
    assert best.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("head_width", [16, 20, 64])
def test_attention_on_arm(emulated: Emulated, head_width: int) -> None:
    torch.manual_seed(2)
    heads, shared, tokens = 4, 2, 70
    width = heads * head_width
    config = ModelConfig(1, width, heads, 128, 32, kv_heads=shared, head_width=head_width)
    projected = torch.randn(tokens, heads + 2 * shared, head_width).bfloat16()
    rows_n = torch.zeros(tokens, dtype=torch.int32)
    positions_n = torch.arange(tokens, dtype=torch.int32)
    angles = torch.rand(tokens, head_width // 2)
    rotation = angles.cos(), angles.sin()
    ours, theirs = (PagedCache(config, 1, 2, torch.bfloat16) for _ in range(2))
    for cache in (ours, theirs):
        cache.extend(0, tokens)
    places = Places(rows_n, positions_n, [(0, 0, tokens)], rotation)
    expected = TORCH.attend(projected, places, theirs.layers[0], heads)
    layer, mixed = ours.layers[0], torch.zeros(tokens, width).bfloat16()
    words: list[Argument] = [projected, *rotation, layer.keys, layer.values, layer.table, rows_n]
    words += [positions_n, mixed, tokens, heads, shared, head_width, ours.page]
    words += [layer.table.shape[1], layer.window, 1 / math.sqrt(head_width), 2]
    emulated.run([("attend", words)])
    torch.testing.assert_close(mixed, expected, rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels for AVX2, as a wheel has them."""
    if not shutil.which("qemu-x86_64-static") or not shutil.which("g++"):
        pytest.skip("qemu or g++ is not installed: apt install qemu-user-static g++")
    if platform.machine() != "x86_64":
        pytest.skip("kernels for x86-64 are compiled and emulated on x86-64 alone")
    avx2 = next(each for each in SETS if each.name == "avx2")
    path = tmp_path_factory.mktemp("built") / avx2.built.name
    command = ["g++", *FLAGS, *avx2.flags, "-O1", "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    return path


SCRIPT = """
import sys, torch
from pathlib import Path
from lmsmith.generation.native import instructions
instructions.BUILT = Path(sys.argv[1])
from lmsmith.generation.native.library import describe_kernels
from lmsmith.generation.native.operations import best_kernels
from lmsmith.generation.weights import Weight
kernels = best_kernels()
print(type(kernels).__name__, describe_kernels())
weight = kernels.prepare(Weight.in_rows(torch.ones(20, 64).bfloat16()))
print(kernels.linear(torch.ones(3, 64).bfloat16(), weight, torch.float32).sum().item())
"""


@pytest.mark.parametrize(
    ("processor", "expected"),
    [("Nehalem", "TorchKernels none"), ("Haswell", "NativeKernels built for avx2")],
)
def test_no_processor_runs_what_it_lacks(
    built: Path, tmp_path: Path, processor: str, expected: str
) -> None:
    """An instruction that the emulated processor lacks would end it by SIGILL."""
    (tmp_path / built.name).symlink_to(built)
    if expected.endswith("avx2"):
        (tmp_path / "avx512.so").touch()  # no library: chosen by mistake, it is not loaded
    emulator = str(shutil.which("qemu-x86_64-static"))
    words = ["-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(
        [emulator, "-cpu", processor, sys.executable, *words],
        env={"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert said[0].startswith(expected)
    assert float(said[1]) == 3 * 20 * 64
