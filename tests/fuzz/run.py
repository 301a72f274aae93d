"""Damage files at random and read them: ``make fuzz``, or ``python tests/fuzz/run.py --help``.

A fault is a death by a signal, a hang, memory far beyond the file's size, or a traceback. The seed
and the number of a mutation make it again: ``--format gguf --seed 7 --only 1234``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # a child has the threads of its parent no more
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("RUST_BACKTRACE", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from fuzz.formats import FORMATS, Case  # noqa: E402
from fuzz.isolate import Ending, isolated  # noqa: E402
from lmsmith.core.errors import UserError  # noqa: E402
from lmsmith.core.paths import cache_folder  # noqa: E402
from lmsmith.evaluation.tasks import templates  # noqa: E402
from lmsmith.generation.native.library import load_library  # noqa: E402
from lmsmith.tokenizers import patterns, template  # noqa: E402


@dataclass
class Found:
    """The endings of a format's mutations, and those that are faults, by number."""

    format: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[int, Ending] = field(default_factory=dict)
    most_bytes: int = 0
    seconds: float = 0.0


def fuzz(name: str, numbers: Sequence[int], seed: int, keep: Path | None = None) -> Found:
    """Read mutations of a format.

    Args:
        numbers: which mutations; each depends on the seed and its number alone.
        keep: a folder for the damaged files of faults.
    """
    torch.set_num_threads(1)
    load_library()  # compiled before a child has its limits
    found, began = Found(name), time.monotonic()
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as root, _home(Path(root) / "home"):
        cases = FORMATS[name](Path(root) / "whole")
        for case in cases:
            _check_whole(case, Path(root))
        gc.collect()
        gc.freeze()
        together = cases[0].together
        for number in sorted({number - number % together for number in numbers}):
            chance = random.Random(f"{name} {seed} {number}")
            case = chance.choice(cases)
            folder = Path(root) / "work"
            ending = _one(case, folder, chance)
            found.counts[ending.kind] += together
            found.most_bytes = max(found.most_bytes, ending.bytes)
            if ending.is_fault:
                found.faults[number] = ending
                if keep is not None:
                    shutil.copytree(folder, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
            if (done := found.counts.total()) % 500 < together and done >= 500:
                print(f"{name}: {done} read", file=sys.stderr, flush=True)
        gc.unfreeze()
    found.seconds = time.monotonic() - began
    return found


def _one(case: Case, folder: Path, chance: random.Random) -> Ending:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.folder, folder)
    for file in chance.sample(sorted(case.damaged), case.together):
        place = folder / file
        place.write_bytes(case.damaged[file](place.read_bytes(), chance))
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    _start_workers()
    return isolated(lambda: _load(case, folder), size)


WORKERS = (template.WORKER, templates.WORKER, patterns.WORKER)


def _start_workers() -> None:
    """Start the processes of other people's templates, where a child has ended them."""
    for worker in WORKERS:
        worker.restart_if_ended()


def _load(case: Case, folder: Path) -> None:
    for worker in WORKERS:
        worker.owner = os.getpid()  # one for all children: it takes long to start
    case.load(folder)


def _check_whole(case: Case, root: Path) -> None:
    """What is not damaged must be read, or nothing is tested; children then have it imported."""
    folder = root / "check"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.folder, folder)
    if case.together > 1:  # it may leave threads behind
        ending = isolated(lambda: case.load(folder), case.size)
        if ending.kind != "read":
            raise SystemExit(f"{case.folder} is whole, and not read: {ending}")
        return
    try:
        case.load(folder)
    except UserError as error:
        raise SystemExit(f"{case.folder} is whole, and not read: {error}") from error
    assert threading.active_count() == 1, "a child has the threads of its parent no more"


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    before, compiled = os.environ.get("LMSMITH_HOME"), cache_folder()
    compiled.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "cache").symlink_to(compiled.absolute())
    os.environ["LMSMITH_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LMSMITH_HOME"]
        else:
            os.environ["LMSMITH_HOME"] = before


def _fast_folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="append", choices=FORMATS, help="all by default")
    parser.add_argument("--count", type=int, default=2000, help="mutations of each format")
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed by default")
    parser.add_argument("--only", type=int, action="append", help="the number of one mutation")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for files of faults")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    faults = 0
    for name in options.format or FORMATS:
        found = fuzz(name, options.only or range(options.count), seed, options.keep)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(found.counts.items()))
        print(
            f"{name}: {counts}; at most {found.most_bytes / 2**20:.0f} MiB; {found.seconds:.0f} s",
            flush=True,
        )
        for number, ending in found.faults.items():
            print(f"--- again: --format {name} --seed {seed} --only {number}")
            print(f"{ending.kind}, {ending.seconds:.1f} s: {ending.text}", flush=True)
        faults += len(found.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
