"""The machine for reading a model: as for training, with the precision that reads fastest."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.device import HOST, is_host
from lmsmith.generation.native.library import load_library
from lmsmith.options import Weights
from lmsmith.training.machine import ResolvedMachine, keep_freed_memory, resolve_machine


def resolve_for_reading(config: MachineConfig) -> ResolvedMachine:
    """Turn every ``auto`` into a choice; nothing in the process changes.

    The C++ kernels read bf16 weights, with float32 sums, faster than PyTorch reads float32 ones on
    every processor; training needs instructions for bf16 products.

    Raises:
        UserError: a negative number of threads.
    """
    machine = resolve_machine(config)
    wanted = config.precision == "auto" and machine.precision == "fp32"
    if wanted and is_host(machine.place) and load_library() is not None:
        return replace(machine, precision="bf16")
    return machine


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
