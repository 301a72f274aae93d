"""What this machine can do, and how training uses it: threads, precision, compiling, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs.stage_folder import available_cores

Result = TypeVar("Result")

COMPILE_SECONDS = 20.0
"""About how long compiling a training step takes on two cores."""


@dataclass(frozen=True)
class ResolvedMachine:
    """The choices that `auto` stood for.

    Attributes:
        precision: type of matrix products in training, ``bf16`` or ``fp32``.
        compile: ``on``, ``auto`` (a stage asks `worth_compiling`) or ``off``, as it is without
            a C++ compiler.
        threads: threads of one operation.
        compiler: path of the C++ compiler, or empty.
        instruction_set: ``amx_bf16``, ``avx512_bf16`` or ``other``.
        deterministic: whether only deterministic algorithms run.
    """

    precision: str
    compile: str
    threads: int
    compiler: str
    instruction_set: str
    deterministic: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in the machine's precision; parameters and sums stay float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)


def cpu_instruction_set() -> str:
    """The best bf16 product instructions of this processor."""
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    if torch.cpu._is_avx512_bf16_supported():
        return "avx512_bf16"
    return "other"


def resolve_machine(config: MachineConfig) -> ResolvedMachine:
    """Turn every ``auto`` into a choice. Pure: changes nothing in the process.

    Raises:
        UserError: a number of threads that cannot be.
    """
    if config.threads < 0:
        raise UserError(f"threads {config.threads}: must not be negative", "0 uses all cores")
    instruction_set = cpu_instruction_set()
    precision = config.precision
    if precision == "auto":
        precision = "fp32" if instruction_set == "other" else "bf16"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    if compiler and shutil.which(compiler) is None:
        compiler = ""
    return ResolvedMachine(
        precision=precision,
        compile=config.compile if compiler else "off",
        threads=config.threads or available_cores(),
        compiler=compiler,
        instruction_set=instruction_set,
        deterministic=config.deterministic,
    )


def prepare_process(config: MachineConfig) -> ResolvedMachine:
    """Set this process up for heavy work, once, before it begins."""
    machine = prepare_reading(config)
    torch.use_deterministic_algorithms(machine.deterministic)
    # Filling fresh memory with NaN is a debugging aid that costs a write of every result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return machine


def prepare_reading(config: MachineConfig) -> ResolvedMachine:
    """Set this process up for writing text alone.

    As `prepare_process`, but for PyTorch's deterministic mode, which imports its compiler: a second
    of a talk's beginning. Generation has nothing that it would change.
    """
    machine = resolve_machine(config)
    keep_freed_memory()
    torch.set_num_threads(machine.threads)
    return machine


def compute_aside(function: Callable[[], Result]) -> Result:
    """Call it in a thread of its own, which ends then, and return what it returns.

    OpenMP keeps a team of threads for every thread that ever computed. Where these are more than
    the cores, GNU's OpenMP lets a team sleep at each of its barriers, of which a step of a model
    has hundreds, instead of waiting awake. So a process in which one thread is to compute for long
    prepares in another one, whose team goes with it.

    Raises:
        Exception: whatever the function raises.
    """
    with ThreadPoolExecutor(1, "aside") as aside:
        return aside.submit(function).result()


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel.

    Every large result would otherwise live in fresh pages that the kernel must clear first: on a
    two-core machine this alone made a 4,096 × 256 × 4,096 bf16 product 3.4 times as slow
    (see docs/log.md). Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 << 20)


@functools.cache
def measure_matrix_peak(precision: str, size: int = 2048, seconds: float = 0.4) -> float:
    """GFLOP/s of a square matrix product, best of several, in this process's threads."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)  # the global one is for dropout, and a run's
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best / 1e9


def measure_matrix_peak_again(precision: str) -> float:
    """`measure_matrix_peak` anew: where work ran faster than it, something disturbed it."""
    measure_matrix_peak.cache_clear()
    return measure_matrix_peak(precision)


def worth_compiling(machine: ResolvedMachine, planned_flops: float) -> bool:
    """Whether the run is long enough for compiling to pay.

    Compiled steps take about three quarters of the eager ones' time here, so a run pays for
    compiling when its eager time, at a fifth of the peak, is over four times the compile time.
    """
    if machine.compile != "auto":
        return machine.compile == "on"
    eager_seconds = planned_flops / (0.2e9 * measure_matrix_peak(machine.precision))
    return eager_seconds > 4 * COMPILE_SECONDS


@contextlib.contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; each model's mode is restored after."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def choose_compiling(machine: ResolvedMachine, planned_flops: float, folder: Path) -> bool:
    """`worth_compiling`, which measures the machine, asked only at a stage's first start.

    Compiled code rounds differently, so a run that is continued while the machine is slower or
    faster must not choose anew. ``auto``'s choice is kept in ``folder / "compiled.json"``.

    Args:
        folder: the stage's checkpoints.
    """
    if machine.compile != "auto":
        return machine.compile == "on"
    path = folder / "compiled.json"
    if path.exists():
        with contextlib.suppress(UserError):
            kept = read_json(path)
            if isinstance(kept, bool):
                return kept
    chosen = worth_compiling(machine, planned_flops)
    write_json(path, chosen)
    return chosen
