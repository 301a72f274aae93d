"""Compile the kernels for this processor, once, and keep the result for later processes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from lmsmith.core.paths import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")

FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fno-math-errno"),
    *("-fopenmp", "-shared", "-fPIC"),
)

COMPILE_SECONDS = 300
"""After that it is given up; it takes two seconds of an idle processor."""


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The kernels, or None where there is no compiler, or with ``LMSMITH_NATIVE=0``.

    The library is kept in the user's cache folder under a name that its source, its compiler and
    the processor decide.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or ""
    if os.environ.get("LMSMITH_NATIVE") == "0" or not shutil.which(compiler):
        return None
    try:
        path = cache_folder() / f"kernels-{_fingerprint(compiler)}.so"
        if not path.is_file():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, path: Path) -> None:
    """Into a file of its own first, so that no other process ever loads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder) / path.name
        command = [compiler, *FLAGS, "-o", str(result), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        result.replace(path)


def _fingerprint(compiler: str) -> str:
    parts = [path.read_bytes() for path in sorted(SOURCE.parent.glob("*.?pp"))]
    parts += [" ".join(FLAGS).encode(), _processor().encode()]
    parts.append(os.path.realpath(shutil.which(compiler) or compiler).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on: the processor's kind and instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() + platform.machine()
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    kept = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU")
    return "\n".join(line for line in first if line.startswith(kept))
