"""The device of heavy work: its choice, precision, peak, clock, memory. No other module names one.

Models are made on the processor, with its random numbers, and moved; so their first weights are the
same on every device. Batches and tables are made there too, and moved where a model reads them.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor, nn

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import DEVICE_VARIABLE, device_of_environment

HOST = torch.device("cpu")
"""The processor: where models and batches are made, and where nothing has to be moved."""

KNOWN_PEAKS = {
    "B200": 2250.0,
    "H200": 989.5,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.5,
    "H800": 989.5,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
}
"""Part of a GPU's name → TFLOP/s of dense bf16 products with float32 sums, of its makers' data
sheets. The first that fits counts."""

KNOWN_MEMORY = {
    "B200": 180,
    "H200": 141,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "H800": 80,
    "A100": 80,
    "A800": 80,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "A40": 48,
    "A10G": 24,
    "A10": 24,
    "RTX A6000": 48,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "MI300X": 192,
}
"""GB of memory of the same GPUs, of the same sheets; of an A100, the larger one's."""


def available_devices() -> list[str]:
    """Names that ``machine.device`` may have here, the fastest first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, HOST.type]


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is `DEVICE_VARIABLE`'s, or the GPU by CUDA if there is one.

    Of several GPUs a process takes that of its number on its machine (``LOCAL_RANK``).

    Raises:
        UserError: this machine has no such device, or no device has that name.
    """
    asked = f"machine.device = {name}"
    if name == "auto":
        name = device_of_environment()
        asked = f"{DEVICE_VARIABLE}={name}"
    here = available_devices()
    if name == "auto":
        name = "cuda" if "cuda" in here else HOST.type
    if name not in ("cuda", "mps", HOST.type):
        raise UserError(f"{asked}: no such device", "give auto, cpu, cuda or mps")
    if name not in here:
        raise UserError(
            f"{asked}: this machine has no such device (PyTorch {torch.__version__} finds "
            f"{', '.join(here)})",
            "give auto; or install the driver and PyTorch's build for that device "
            "(`lmsmith doctor --gpu` shows what is found)",
        )
    if name != "cuda":
        return torch.device(name)
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"{asked}: process {number} of this machine has no GPU of its own ({count} found)",
            f"start {count} processes or fewer on it (--processes {count})",
        )
    return torch.device("cuda", number)


def is_host(device: torch.device) -> bool:
    return device.type == HOST.type


def processes_here() -> int:
    """Processes of a run on this machine, which share its cores, and take a GPU each."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free_gpus() -> list[str]:
    """GPUs by CUDA that no process of this run takes, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in visible.split(",")][processes_here() : count]


def sends_by_nccl(device: torch.device) -> bool:
    """Whether NCCL sends what is on a device: a GPU by CUDA, and a PyTorch built with NCCL."""
    return device.type == "cuda" and hasattr(torch._C, "_nccl_init_rank")


def current_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, this thread's calls to CUDA go to the device; a new thread begins with the first."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in double precision, in which tokens are drawn; MPS does not."""
    return device.type != "mps"


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; those that have no numbers (meta) do not count."""
    devices = (each.device for each in model.parameters() if not each.is_meta)
    return next(devices, torch.device("meta"))


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU it is copied from pinned memory while the program goes on."""
    if device.type == "cuda" and is_host(value.device):
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def instruction_set() -> str:
    """The best bf16 product instructions of this processor, as far as PyTorch may use them.

    ``ATEN_CPU_CAPABILITY=avx2`` holds PyTorch to those of an older processor.
    """
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return "other"
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    if torch.cpu._is_avx512_bf16_supported():
        return "avx512_bf16"
    return "other"


def product_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it several times as fast, else float32."""
    if is_host(device):
        fast = instruction_set() != "other"
    else:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if fast else torch.float32


def autocast(
    device: torch.device, dtype: torch.dtype, *, keeps_copies: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Matrix products in ``dtype``; parameters and sums stay float32.

    Args:
        keeps_copies: whether the weights in ``dtype`` are kept until the end, for the next pass. A
            training step has one, and would hold all copies where it drops activations.
    """
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype, cache_enabled=keeps_copies)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Products in the tensors' own type, also inside `autocast`."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products: autocast's, or the tensor's own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def describe_device(device: torch.device) -> str:
    """The name of a GPU's model; empty for the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "" if is_host(device) else device.type


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """GFLOP/s of a known GPU's products, which share_of_peak divides by; None if unknown."""
    if dtype != torch.bfloat16:
        return None
    name = describe_device(device)
    return next((1e3 * peak for part, peak in KNOWN_PEAKS.items() if part in name), None)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a clock is read after."""
    if not is_host(device):
        _call(device, "synchronize")


def reset_device_memory(device: torch.device) -> None:
    """Begin a new peak of `device_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took on a GPU since the last reset; None for the processor.

    MPS knows no peak: it is what the driver has allocated now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def random_state(device: torch.device) -> Tensor | None:
    """The state of the device's own generator, for a checkpoint; None on the processor."""
    if is_host(device):
        return None
    state: Tensor | None = _call(device, "get_rng_state")
    return state


def set_random_state(device: torch.device, state: Tensor | None) -> None:
    """Put back `random_state`."""
    if state is not None and not is_host(device):
        _call(device, "set_rng_state", state)


def _call(device: torch.device, name: str, *arguments: object) -> Any:
    """Call a function of the device's module (`torch.cuda`, `torch.mps`), if it has it."""
    function = getattr(torch.get_device_module(device), name, None)
    return None if function is None else function(*arguments)
