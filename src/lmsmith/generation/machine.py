"""The machine for reading a model: as for training, with the precision that reads fastest."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.device import HOST, is_host
from lmsmith.generation.native.library import load_library
from lmsmith.generation.precision import Measured, fastest_precision
from lmsmith.options import Weights
from lmsmith.training.machine import ResolvedMachine, keep_freed_memory, resolve_machine


def resolve_for_reading(config: MachineConfig) -> ResolvedMachine:
    """Turn every ``auto`` into a choice; nothing in the process changes.

    Raises:
        UserError: a negative number of threads.
    """
    machine = resolve_machine(config)
    if config.precision != "auto" or not is_host(machine.place):
        return machine
    return replace(machine, precision=measured_precision(machine.precision).precision)


def measured_precision(training: str) -> Measured:
    """What `auto` chose from on this processor.

    bf16 is usual with the C++ kernels, which multiply it with float32 sums on every processor;
    without them, what ``training`` takes, which needs instructions for bf16 products.
    """
    return fastest_precision("bf16" if load_library() or training == "bf16" else "fp32")


def stays_packed(weights: Weights, device: torch.device = HOST) -> bool:
    """Whether the matrices of a quantised GGUF file are used as it packs them: if its weights are
    wanted, and the C++ kernels that multiply them are here and compute."""
    return weights == "file" and is_host(device) and load_library() is not None


def prepare_reading(config: MachineConfig) -> ResolvedMachine:
    """Set this process up for generation: `training.machine.prepare_process` without PyTorch's
    deterministic mode, which would change nothing and takes a second to import the compiler.

    Raises:
        UserError: a negative number of threads.
    """
    machine = resolve_for_reading(config)
    keep_freed_memory()
    torch.set_num_threads(machine.threads)
    return machine
