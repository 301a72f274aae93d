"""A stage's folder and seeds, and the machine and commit that a run records."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from lmsmith.core.progress import Progress
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.core.version import VERSION
from lmsmith.runs.folders import stage_of
from lmsmith.runs.metrics_log import MetricsLog

_FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Instructions that matter to us, as Linux names them."""


@dataclass(frozen=True)
class StageFolder:
    """Where a stage writes; ``out / "model"`` is a path in it. All chance comes from ``seed``."""

    path: Path
    seed: int
    machine: MachineConfig
    progress: Progress
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def name(self) -> str:
        return stage_of(self.path)

    @property
    def checkpoints(self) -> Path:
        """Removed when the stage is done."""
        return self.path / "checkpoints"

    def warn(self, text: str) -> None:
        """Show a warning of the stage, if the text is not empty."""
        if text:
            self.progress.say(f"{self.name}: {text}")

    def metrics_log(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named use, the same on every machine and independent of others."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def describe_hardware() -> dict[str, object]:
    """The machine in words and numbers: processor, cores, memory (bytes), flags, platform."""
    fields = _processor_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "memory_bytes": _memory_bytes(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def describe_versions() -> dict[str, str]:
    """The versions of lmsmith and of the packages that decide its numbers."""
    found = {"lmsmith": VERSION, "python": platform.python_version()}
    for name in ("torch", "tokenizers", "safetensors", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def available_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def advice_on_threads(threads: int = 0) -> str:
    """Advice where other programs keep cores busy that ``threads`` (0: all) need; else empty.

    Threads wait for each other at every step, and are slower than one thread if they share a core.
    """
    cores = available_cores()
    threads = threads or cores
    total, busy = os.cpu_count() or cores, _busy_cores() if threads > 1 else 0.0
    free = max(1, round(min(cores, total - busy)))
    if busy < 0.5 or threads <= free:
        return ""
    return (
        f"other programs keep {busy:.1f} of {total} cores busy: {threads} threads may be slower "
        f"than {free} here. Stop these programs, or set machine.threads = {free} "
        f"(--set machine.threads={free})."
    )


def _busy_cores(seconds: float = 0.3) -> float:
    """How many cores others use now; 0 where the system does not say."""
    before, own, began = _busy_seconds(), time.process_time(), time.monotonic()
    if before is None:
        return 0.0
    time.sleep(seconds)
    others = (_busy_seconds() or before) - before - (time.process_time() - own)
    return max(0.0, others / (time.monotonic() - began))


def _busy_seconds() -> float | None:
    """Seconds that all cores have worked for programs of normal priority; None if not on Linux."""
    fields = _read_text("/proc/stat").split("\n", 1)[0].split()
    if len(fields) < 8:
        return None
    user, _nice, system, _idle, _waiting, interrupts, soft = map(int, fields[1:8])
    return float(user + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _processor_fields() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty elsewhere than on Linux."""
    text = _read_text("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


_CGROUP = ("max", "current")
"""Files of a container's memory: its limit, and what it has taken."""


def _memory_bytes() -> int:
    """The machine's memory, or the container's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_text("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def available_memory_bytes() -> int:
    """What programs can still take without swapping: of the machine, or of the container's limit
    where that is less. On other systems than Linux the machine's whole memory.
    """
    found = _memory_bytes()
    for line in _read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    limit, used = (_read_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in _CGROUP)
    return min(found, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else found


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def git_commit() -> str | None:
    """The commit of this package, with ``-dirty`` if files were changed since.

    None when it was installed without its repository, or inside somebody else's.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def reset_peak_memory() -> bool:
    """Reset this process's memory peak, so that it is a stage's own; False where impossible.

    Freed memory is first returned to the system: it would count as this stage's. Linux allows a
    reset by writing 5 to /proc/self/clear_refs.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """The most memory this process has had resident since the last reset (see VmHWM), in bytes.

    Elsewhere than on Linux it is getrusage's, which has no reset.
    """
    for line in _read_text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
