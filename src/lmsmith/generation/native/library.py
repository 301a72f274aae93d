"""The compiled kernels: those that a wheel brings, or compiled once for this processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from lmsmith.core.paths import cache_folder
from lmsmith.generation.native.instructions import (
    InstructionSet,
    built_here,
    chosen_set,
    native_flags,
    wheel_helps,
)
from lmsmith.generation.native.targets import FLAGS

log = logging.getLogger("lmsmith.generation")

SOURCE = Path(__file__).with_name("kernels.cpp")

COMPILE_SECONDS = 300
"""Limit; it takes some ten seconds of an idle processor."""

SLOW = "without the C++ kernels, PyTorch writes several times more slowly; install g++"


def load_library() -> ctypes.CDLL | None:
    """The kernels; None without a compiler and built ones, or with ``LMSMITH_NATIVE=0``.

    The name of compiled ones in the user's cache folder depends on source, compiler and processor.

    Raises:
        UserError: LMSMITH_INSTRUCTIONS names instructions that are not here.
    """
    return _load()[0]


def describe_kernels() -> str:
    """Which kernels are used here, for people."""
    return _load()[1]


def advice_on_kernels() -> str:
    """Why writing is slow here and what would make it fast; empty where it is fast."""
    slow = load_library() is None and os.environ.get("LMSMITH_NATIVE") != "0"
    return f"this is slow here: {_slow()}" if slow else ""


def _slow() -> str:
    return SLOW + (", or lmsmith's wheel for this platform" if wheel_helps() else "")


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("LMSMITH_NATIVE") == "0":
        return None, "none (LMSMITH_NATIVE=0): PyTorch's operations"
    wanted = chosen_set()
    if (built := built_here(wanted)) is not None:
        try:
            return ctypes.CDLL(str(built)), f"built for {built.stem}"
        except OSError:  # of another system, or damaged
            pass
    compiler = os.environ.get("CXX") or shutil.which("g++") or ""
    if shutil.which(compiler):
        flags = (*FLAGS, *(native_flags() if wanted is None else wanted.flags))
        try:
            path = cache_folder() / f"kernels-{_fingerprint(compiler, flags, wanted)}.so"
            if not path.is_file():
                log.warning("the kernels of generation are being compiled for this machine, once")
                _compile(compiler, flags, path)
            name = "this processor" if wanted is None else wanted.name
            return ctypes.CDLL(str(path)), f"compiled for {name} by {compiler}"
        except (OSError, subprocess.SubprocessError):
            return None, f"none ({compiler} cannot compile them): {_slow()}"
    return None, f"none: {_slow()}"


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile to a temporary file first, so that no process ever loads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder) / path.name
        command = [compiler, *flags, "-o", str(result), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        result.replace(path)


def _fingerprint(compiler: str, flags: tuple[str, ...], wanted: InstructionSet | None) -> str:
    parts = [path.read_bytes() for path in sorted(SOURCE.parent.glob("*.?pp"))]
    parts += [" ".join(flags).encode(), (describe_processor() if wanted is None else "").encode()]
    parts.append(os.path.realpath(shutil.which(compiler) or compiler).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def describe_processor() -> str:
    """The processor's kind and instructions, on which ``-march=native`` depends."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() + platform.machine()
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    kept = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU")
    return "\n".join(line for line in first if line.startswith(kept))
