"""Compiled code that PyTorch keeps on disk from run to run."""

from __future__ import annotations

import contextlib
import functools
import struct
from pathlib import Path

ELF_HEADER = struct.Struct("<4sBB34xQ10xHH2x")
"""Mark, class, byte order; place, size and number of the section headers; 64 bits."""


@functools.cache
def remove_unfinished_libraries() -> None:
    """Remove libraries that a killed process left half written; once a process.

    The C++ compiler writes under the final name, and PyTorch takes a file of that name as done:
    every later run with the same code would end with ``ImportError: file too short``. A file that
    another process is writing is locked, and stays.
    """
    from filelock import FileLock, Timeout
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir())
    for path in folder.glob("*/*.so"):
        if not is_unfinished(path):
            continue
        lock = FileLock(folder / "locks" / f"{path.name.partition('.')[0]}.lock")
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
            if is_unfinished(path):
                path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether a library is empty, or an ELF file shorter than its header says."""
    try:
        with path.open("rb") as file:
            header = file.read(ELF_HEADER.size)
        size = path.stat().st_size
    except OSError:
        return False
    if not header.startswith(b"\x7fELF"[: len(header)]):
        return False
    if len(header) < ELF_HEADER.size:
        return True
    _, bits, order, sections, section_size, count = ELF_HEADER.unpack(header)
    return (bits, order) == (2, 1) and size < sections + section_size * count
