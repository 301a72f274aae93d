"""The kernels for every set of instructions that can run here, and AVX-512's simulated."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmsmith.core.paths import cache_folder
from lmsmith.generation.native import library
from lmsmith.generation.native.instructions import SETS, VARIABLE
from lmsmith.generation.native.operations import NativeKernels, best_kernels
from lmsmith.generation.native.targets import FLAGS

HERE = [each.name for each in SETS if each.runs_here]
SIMULATED = "avx512 simulated"


def simulated_library() -> ctypes.CDLL:
    """The kernels for AVX-512, its instructions made of others by SIMD Everywhere."""
    if importlib.util.find_spec("simde_py") is None:
        pytest.skip("SIMD Everywhere is not installed: pip install simde-py")
    if not shutil.which("g++") or platform.machine() != "x86_64":
        pytest.skip("AVX-512 is simulated on x86-64 with g++ alone")
    from simde_py import get_include

    flags = ["-Og", "-march=x86-64-v3", "-Wno-psabi", "-I", get_include()]
    header = Path(__file__).with_name("simulated_512.hpp")
    sources = [header, *sorted(library.SOURCE.parent.glob("*.?pp"))]
    name = hashlib.sha256(b"\0".join(each.read_bytes() for each in sources)).hexdigest()[:16]
    path = cache_folder() / f"simulated-{name}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        command = ["g++", *FLAGS, *flags, "-include", str(header), "-o", str(made)]
        subprocess.run([*command, str(library.SOURCE)], check=True, timeout=900)
        made.replace(path)
    return ctypes.CDLL(str(path))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(
    scope="module",
    params=["native", *HERE[1:], *([] if "avx512" in HERE else [SIMULATED])],
)
def kernels(request: pytest.FixtureRequest) -> Iterator[NativeKernels]:
    """Those that everything uses while the test runs."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == SIMULATED:
            loaded = simulated_library(), SIMULATED
            patch.setattr(library, "_load", lambda: loaded)
        elif request.param != "native":
            patch.setenv(VARIABLE, request.param)
            chosen = library._load.__wrapped__()
            patch.setattr(library, "_load", lambda: chosen)
        found = best_kernels()
        if not isinstance(found, NativeKernels):
            pytest.skip("no C++ compiler here")
        yield found
