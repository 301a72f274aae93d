"""Sets of instructions for which the kernels are built, and those that this processor has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from lmsmith.core.errors import UserError

VARIABLE = "LMSMITH_INSTRUCTIONS"
"""Chooses a set by name, for tests and comparisons; ``native`` compiles for this processor."""

BUILT = Path(__file__).with_name("built")
"""Kernels that a platform's wheel brings (hatch_build.py)."""


@dataclass(frozen=True)
class InstructionSet:
    """A kind of processors.

    Attributes:
        name: in the variable, in ``lmsmith doctor``, and in the name of the built kernels.
        machine: as `platform.machine` has it.
        flags: of g++. At -O2 it compiles the kernels for AVX2 several times faster, and they are as
            fast; those for AVX-512 were measured at -O3 alone.
        needs: capabilities of the processor, as PyTorch names them.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]

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

_SHORT = ("-O2", "-ftree-vectorize")
_AVX2 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt", "popcnt")
_AVX512 = tuple(f"avx512_{part}" for part in ("f", "bw", "cd", "dq", "vl", "bf16", "vnni"))

SETS = (
    InstructionSet(
        "avx512",
        "x86_64",
        ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"),
        (*_AVX2, *_AVX512),
    ),
    InstructionSet("avx2", "x86_64", (*_SHORT, "-march=x86-64-v3"), _AVX2),
    InstructionSet("neon", "aarch64", _SHORT, ()),
)
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
