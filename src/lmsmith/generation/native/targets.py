"""Processors for which the kernels are built, with the flags of both compilers.

It imports nothing of lmsmith, so that hatch_build.py reads it before anything is installed.
"""

from typing import NamedTuple

FLAGS = ("-std=c++17", "-fno-math-errno", "-pthread", "-shared", "-fPIC")
"""Flags that g++ and zig take alike, for every target."""


class Target(NamedTuple):
    """A kind of processors.

    Attributes:
        name: in LMSMITH_INSTRUCTIONS, in ``lmsmith doctor``, and in the name of the built kernels.
        machine: as `platform.machine` has it.
        flags: of g++. At -O2 it compiles the kernels for AVX2 several times faster, and they are as
            fast; those for AVX-512 were measured at -O3 alone.
        zig: flags of zig, which names instructions differently.
        needs: capabilities of the processor, as PyTorch names them.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    zig: tuple[str, ...]
    needs: tuple[str, ...]


_SHORT = ("-O2", "-ftree-vectorize")
_AVX2 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt", "popcnt")
_AVX512 = tuple(f"avx512_{part}" for part in ("f", "bw", "cd", "dq", "vl", "bf16", "vnni"))

TARGETS = (
    Target(
        "avx512",
        "x86_64",
        ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"),
        ("-O3", "-mcpu=x86_64_v4+avx512bf16+avx512vnni"),
        (*_AVX2, *_AVX512),
    ),
    Target("avx2", "x86_64", (*_SHORT, "-march=x86-64-v3"), ("-O3", "-mcpu=x86_64_v3"), _AVX2),
    Target("neon", "aarch64", _SHORT, ("-O3", "-mcpu=generic"), ()),
)
"""The fastest of each machine first."""
