"""Sets of instructions for which the kernels are built, and those that this processor has."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

from lmsmith.core.errors import UserError
from lmsmith.generation.native.targets import TARGETS, Target

VARIABLE = "LMSMITH_INSTRUCTIONS"
"""Chooses a set by name, for tests and comparisons; ``native`` compiles for this processor."""

BUILT = Path(__file__).with_name("built")
"""Kernels that a platform's wheel brings (hatch_build.py)."""


class InstructionSet(Target):
    """A target, as this system has it."""

    @property
    def runs_here(self) -> bool:
        """Whether this processor has all of its instructions."""
        if MACHINES.get(platform.machine()) != self.machine:
            return False
        found = torch.cpu.get_capabilities()
        return all(found.get(name, False) for name in self.needs)

    @property
    def built(self) -> Path:
        """Where a wheel for this system has it."""
        return BUILT / f"{self.name}.so"


MACHINES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

SETS = tuple(InstructionSet(*target) for target in TARGETS)
"""The fastest first."""


def chosen_set() -> InstructionSet | None:
    """The set that the variable names; None for the processor's own instructions.

    Raises:
        UserError: there is no such set, or the processor lacks an instruction of it.
    """
    name = os.environ.get(VARIABLE, "native")
    if name == "native":
        return None
    for each in SETS:
        if each.name == name:
            if each.runs_here:
                return each
            fix = f"leave {VARIABLE} out, or choose {', '.join(names_here())}"
            raise UserError(f"{VARIABLE}={name}: this processor has no such instructions", fix)
    raise UserError(f"{VARIABLE}={name}: there is no such set", f"choose {', '.join(names_here())}")


def native_flags() -> tuple[str, ...]:
    """Flags of g++ for this processor's own instructions."""
    fastest = next((each for each in SETS if each.runs_here), None)
    return ("-O3" if fastest is not None and "-O3" in fastest.flags else "-O2",
            "-ftree-vectorize", "-march=native")  # fmt: skip


def names_here() -> list[str]:
    """Values of the variable that this processor can run."""
    return ["native", *(each.name for each in SETS if each.runs_here)]


def built_here(only: InstructionSet | None = None) -> Path | None:
    """The fastest built kernels that this processor can run, of one set if it is given."""
    sets = SETS if only is None else (only,)
    return next((each.built for each in sets if each.built.is_file() and each.runs_here), None)


def wheel_helps() -> bool:
    """Whether kernels that this processor can run are in a wheel which is not installed."""
    return sys.platform == "linux" and any(
        each.runs_here and not each.built.is_file() for each in SETS
    )
