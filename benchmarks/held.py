"""One set of instructions for every side of a measurement, and what a core can do with it at most.

lmsmith chooses its kernels by LMSMITH_INSTRUCTIONS. PyTorch, and with it transformers and vLLM, is
held by ATEN_CPU_CAPABILITY, its libraries oneDNN and MKL by variables of their own. llama.cpp's
instructions are those that it was built for: its system info names them, and another build is
refused.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

Instructions = Literal["native", "avx2", "avx512"]

VARIABLES: Mapping[str, Mapping[str, str]] = {
    "native": {},
    "avx2": {
        "LMSMITH_INSTRUCTIONS": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "LMSMITH_INSTRUCTIONS": "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
"""Set → variables of a process that is held to it, and of those that it starts."""

LLAMA_CPP_FLAGS = {
    "avx2": ("AVX2", "FMA", "F16C"),
    "avx512": ("AVX512", "AVX512_VNNI", "AVX512_BF16"),
    "neon": ("NEON",),
}
"""Set → what llama.cpp's system info has for it, and none of a later set's."""

LLAMA_CPP_MODULES: Mapping[str, Callable[[Any], str]] = {
    "xllamacpp": lambda module: str(module.get_system_info()),
    "llama_cpp": lambda module: str(module.llama_print_system_info().decode()),
}
"""Module → its system info. xllamacpp's wheel is built for AVX2, and its source needs Rust;
llama-cpp-python's source builds for any set."""

BUILD_LLAMA_CPP = {
    "avx2": "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON",
    "avx512": "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON",
    "neon": "-DGGML_NATIVE=ON",
}
"""Set → CMAKE_ARGS of its build from source."""

ROUNDS = 20_000_000
"""Steps of `peak.cpp`: some tenths of a second."""


def hold(name: Instructions) -> str:
    """Hold this process and those that it starts to a set.

    Call it before PyTorch is imported.

    Returns:
        The set: for native the best one that the processor has, or none.
    """
    os.environ.update(VARIABLES[name])

    from lmsmith.core.errors import UserError
    from lmsmith.generation.native.instructions import SETS, chosen_set, names_here

    try:
        chosen = chosen_set()
    except UserError:
        refuse(f"--instructions {name}: this processor has {', '.join(names_here())} alone")
    best = chosen or next((each for each in SETS if each.runs_here), None)
    return best.name if best else "none"


def hold_llama_cpp(held: str, module: str = "") -> tuple[str, str]:
    """The Python module whose llama.cpp was built for this set, and its system info; else the end.

    Args:
        module: the one that must be, such as xllamacpp, whose server answers over HTTP too.
    """
    found = {}
    for name, system_info in LLAMA_CPP_MODULES.items():
        if (not module or name == module) and importlib.util.find_spec(name):
            found[name] = system_info(importlib.import_module(name))
            if is_built_for(found[name], held):
                return name, found[name]
    builds = "; ".join(f"{name}: {info.strip(' |')}" for name, info in found.items())
    build = f'CMAKE_ARGS="{BUILD_LLAMA_CPP[held]}" pip install --no-binary llama-cpp-python'
    refuse(f"llama.cpp was not built for {held} ({builds})\nbuild it: {build} llama-cpp-python")


def has_llama_cpp() -> bool:
    """Whether any of the modules is installed."""
    return any(map(importlib.util.find_spec, LLAMA_CPP_MODULES))


def is_built_for(info: str, held: str) -> bool:
    """Whether llama.cpp's system info has the set's flags, and none of a later set."""
    flags = {part.partition("=")[0].strip() for part in info.replace(":", "|").split("|")}
    later = {flag for flag in flags if flag.startswith("AVX512") or flag == "AVX_VNNI"}
    wanted = LLAMA_CPP_FLAGS.get(held, ())
    return flags.issuperset(wanted) and (held == "avx512" or not later)


def refuse(message: str) -> Any:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def describe(
    held: str, threads: int, sides: Sequence[str], llama_cpp: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """The machine: processor, set, cores, versions of all sides, and the day."""
    import torch

    from lmsmith.generation.native.library import describe_kernels
    from lmsmith.runs.stage_folder import describe_hardware, describe_versions

    versions = describe_versions()
    module, info = llama_cpp
    packages = {"transformers": "transformers", "llama.cpp": module.replace("_cpp", "-cpp-python")}
    for side, package in packages.items():
        if any(each.startswith(side) for each in sides):
            versions[package] = metadata.version(package)
    return {
        **describe_hardware(),
        "instructions": held,
        "kernels": describe_kernels(),
        "pytorch_instructions": torch.backends.cpu.get_cpu_capability(),
        "llama_cpp": info,
        "threads": threads,
        "versions": versions,
        "date": date.today().isoformat(),
    }


def peak_operations(
    held: str, threads: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Kind of number → most operations a second of so many threads; empty without a compiler.

    A product and its sum are two operations. ``floats`` are float32 numbers, or bf16 ones where the
    set multiplies them; ``integers`` have 16 bits.
    """
    from lmsmith.generation.native.instructions import SETS, native_flags

    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        return {}
    wanted = next((each for each in SETS if each.name == held), None)
    flags = native_flags() if wanted is None else wanted.flags
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        source = str(Path(__file__).with_name("peak.cpp"))
        command = (compiler, *flags, "-shared", "-fPIC", "-o", str(library), source)
        subprocess.run(command, check=True)
        functions = ctypes.CDLL(str(library))
    return {kind: _best_rate(functions[kind], threads, clock) for kind in ("floats", "integers")}


def _best_rate(function: Any, threads: int, clock: Callable[[], float], tries: int = 5) -> float:
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(tries):
            started = clock()
            done = sum(pool.map(function, [ROUNDS] * threads))
            best = max(best, done / (clock() - started))
    return best
