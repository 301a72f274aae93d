"""How heavy work uses the machine: threads, precision, compiling, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.core.recipe import MachineConfig
from lmsmith.device import (
    HOST,
    autocast,
    choose_device,
    instruction_set,
    is_host,
    known_peak,
    processes_here,
    product_dtype,
    synchronise,
)
from lmsmith.runs.stage_folder import available_cores, available_memory_bytes
from lmsmith.training.parallel import from_leader

Result = TypeVar("Result")
Model = TypeVar("Model", bound=nn.Module)

COMPILE_SECONDS = 20.0
"""Approximate time that compiling a training step takes on two cores."""

SLOW_GIGAFLOPS = 8.0
"""Peak below which the usual product would take over two seconds, and a smaller one is measured."""


@dataclass(frozen=True)
class ResolvedMachine:
    """The choices that `auto` stood for."""

    precision: str
    """Type of matrix products in training, ``bf16`` or ``fp32``."""
    compile: str
    """``on``, ``auto`` (`choose_compiling` decides) or ``off``, as without a C++ compiler."""
    threads: int
    """Threads of one operation."""
    compiler: str
    """Path of the C++ compiler, or empty."""
    instruction_set: str
    """``amx_bf16``, ``avx512_bf16`` or ``other``."""
    deterministic: bool
    """Whether only deterministic algorithms run."""
    device: str = str(HOST)
    """Where models compute, such as ``cuda:0``."""
    sharding: str = "auto"
    """Whether several processes divide a model (`training.sharding`)."""

    @property
    def place(self) -> torch.device:
        """The device as PyTorch's."""
        return torch.device(self.device)

    def put(self, model: Model) -> Model:
        """A model on the device; it is moved in place."""
        return model.to(self.place)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @contextlib.contextmanager
    def reading(self, *models: nn.Module) -> Iterator[None]:
        """Inside, the models are on the device and in evaluation mode; products are autocast."""
        for model in models:
            self.put(model)
        with evaluation_mode(*models), self.autocast():
            yield

    def autocast(self, *, keeps_copies: bool = True) -> contextlib.AbstractContextManager[object]:
        """Matrix products in the machine's precision; parameters and sums stay float32.

        ``keeps_copies`` is that of `lmsmith.device.autocast`.
        """
        return autocast(self.place, self.dtype, keeps_copies=keeps_copies)


def resolve_machine(config: MachineConfig) -> ResolvedMachine:
    """Turn every ``auto`` into a choice; nothing in the process changes.

    Raises:
        UserError: a negative number of threads, or a device that this machine lacks.
    """
    if config.threads < 0:
        raise UserError(f"threads {config.threads}: must not be negative", "0 uses all cores")
    device = choose_device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if product_dtype(device) == torch.bfloat16 else "fp32"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    compiler = compiler if shutil.which(compiler) else ""
    return ResolvedMachine(
        precision=precision,
        compile=config.compile if compiler else "off",
        threads=config.threads or _usual_threads(),
        compiler=compiler,
        instruction_set=instruction_set(),
        deterministic=config.deterministic,
        device=str(device),
        sharding=config.sharding,
    )


def _usual_threads() -> int:
    """This process's share of the cores.

    One on ARM before ARMv8.1, such as a Raspberry Pi 4: where threads share a product, the BLAS in
    PyTorch's wheel runs an atomic instruction that came with it, and the process would end.
    """
    if not torch.cpu.get_capabilities().get("atomics", True):
        return 1
    return max(1, available_cores() // processes_here())


def prepare_process(config: MachineConfig) -> ResolvedMachine:
    """Set this process up for training, once, before it begins."""
    machine = resolve_machine(config)
    keep_freed_memory()
    torch.set_num_threads(machine.threads)
    if not is_host(machine.place):
        # cuBLAS reads it when it begins; without it products are not the same every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A GPU has operations without a deterministic form (docs/gpus.md names them): it warns of them.
    torch.use_deterministic_algorithms(machine.deterministic, warn_only=not is_host(machine.place))
    # Filling fresh memory with NaN is a debugging aid that costs a write of every result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return machine


def compute_aside(function: Callable[[], Result], threads: int = 0) -> Result:
    """Return the function's result (or raise its error) from a thread of its own.

    OpenMP keeps a team of threads for every thread that computed. Where these are more than the
    cores, GNU's OpenMP lets a team sleep at each of the hundreds of barriers in a model's step.
    So preparations run in another thread than long computing, and their team ends with it.

    Args:
        function: what computes.
        threads: of one of its operations; as many as in the calling thread if 0.
    """
    with ThreadPoolExecutor(1, "aside") as aside:
        if threads:
            usual = keep_threads()
            aside.submit(_take_threads, threads).result()
            torch.set_num_threads(usual)  # also for threads that begin later
        return aside.submit(function).result()


def keep_threads() -> int:
    """The number of threads of an operation in this thread, which others change no more.

    PyTorch gives a thread the number that was set last, wherever, when it computes first.
    """
    return torch.get_num_threads()


def _take_threads(threads: int) -> None:
    keep_threads()
    torch.set_num_threads(threads)


FEW_BYTES = 500_000_000
"""Freed blocks of so many bytes are not worth returning."""


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks; no effect with another C library.

    Otherwise the kernel clears fresh pages for every large result, which made a bf16 product of
    4,096 × 256 × 4,096 3.4 times as slow on two cores (see docs/log.md).
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 << 20)


class _HeapFigures(ctypes.Structure):
    """glibc's ``struct mallinfo2``, of which the bytes in use are read: in the heap (``uordblks``)
    and in blocks with pages of their own (``hblkhd``)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def freed_bytes() -> int:
    """Resident memory that `keep_freed_memory` keeps and nothing uses; 0 where glibc says nothing.

    It counts the program's own tables too, some 100 MB.
    """
    try:
        mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2  # since glibc 2.33
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except (OSError, AttributeError):
        return 0
    mallinfo2.restype = _HeapFigures
    anonymous = (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    found = mallinfo2()
    return max(0, anonymous - int(found.uordblks) - int(found.hblkhd))


def give_back_freed_memory() -> bool:
    """Return the freed blocks that are kept to the system, where it has not twice as much left.

    Steps of many shapes leave holes that later results do not fit: fine-tuning on RTE came to
    15 GB in a hundred steps. Steps of one shape leave none, and as long as memory is plentiful
    nothing is returned, for fresh pages take time.

    Returns:
        Whether blocks were returned.
    """
    freed = freed_bytes()
    if freed < FEW_BYTES or available_memory_bytes() >= 2 * freed:
        return False
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return True


def matrix_peak(machine: ResolvedMachine) -> float:
    """GFLOP/s of the device's matrix products: a known GPU's, else measured."""
    known = known_peak(machine.place, machine.dtype)
    return known or measure_matrix_peak(machine.precision, machine.device)


@functools.cache
def measure_matrix_peak(
    precision: str, device: str = str(HOST), size: int = 0, seconds: float = 0.4
) -> float:
    """GFLOP/s of a square matrix product, best of several, in this process's threads."""
    dtype, place = torch.bfloat16 if precision == "bf16" else torch.float32, torch.device(device)
    if not size and is_host(place):
        small = measure_matrix_peak(precision, device, size=512, seconds=0.02)
        if small < SLOW_GIGAFLOPS:
            return small
    size = size or (2048 if is_host(place) else 8192)
    generator = torch.Generator().manual_seed(0)  # the global one is for dropout, and a run's
    left, right = (torch.randn(size, size, generator=generator).to(place, dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + seconds
    with warnings.catch_warnings():
        # On ARM without bf16 PyTorch warns, with a whole stack, that it goes a slower way.
        warnings.simplefilter("ignore", UserWarning)
        while time.perf_counter() < end:
            synchronise(place)
            started = time.perf_counter()
            left @ right
            synchronise(place)
            best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best / 1e9


def raised_peak(machine: ResolvedMachine, peak: float, gigaflops: float) -> float:
    """The peak, measured again where work ran faster: something disturbed the first measurement."""
    if gigaflops <= peak:
        return peak
    measure_matrix_peak.cache_clear()
    return max(gigaflops, matrix_peak(machine))


def worth_compiling(machine: ResolvedMachine, planned_flops: float) -> bool:
    """Whether the run is long enough for compiling to pay.

    Compiled steps take about three quarters of the eager time, so a run pays for compiling when
    its eager time, at a fifth of the peak, is over four times the compile time.
    """
    if machine.compile != "auto":
        return machine.compile == "on"
    eager_seconds = planned_flops / (0.2e9 * matrix_peak(machine))
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
    """`worth_compiling`, which measures the machine, called only at a stage's first start.

    Compiled code rounds differently, so a continued run must not choose again. ``auto``'s choice is
    kept in ``compiled.json`` in the ``folder`` of the stage's checkpoints.
    """
    if machine.compile != "auto":
        return machine.compile == "on"
    return bool(from_leader(partial(_choose_once, machine, planned_flops, folder)))


def _choose_once(machine: ResolvedMachine, planned_flops: float, folder: Path) -> bool:
    path = folder / "compiled.json"
    if path.exists():
        with contextlib.suppress(UserError):
            if isinstance(kept := read_json(path), bool):
                return kept
    chosen = worth_compiling(machine, planned_flops)
    write_json(path, chosen)
    return chosen
