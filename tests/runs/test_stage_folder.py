"""A run knows its folders, machine, commit and seeds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs import stage_folder as runs


def test_seeds_are_stable_distinct_and_63_bits() -> None:
    assert runs.derive_seed(1, "pretrain") == KNOWN
    seeds = {runs.derive_seed(seed, *names) for seed in (0, 1) for names in NAMES}
    assert len(seeds) == 2 * len(NAMES)
    assert all(0 <= seed < 2**63 for seed in seeds)


KNOWN = 4690866150861866029  # every past run depends on it
NAMES: list[tuple[str | int, ...]] = [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,)]


def test_stage_folder_paths(tmp_path: Path) -> None:
    out = runs.StageFolder(tmp_path / "sft", 1, MachineConfig(), QuietProgress())
    assert out / "model" == tmp_path / "sft" / "model"
    assert out.checkpoints == tmp_path / "sft" / "checkpoints"
    out.metrics_log().append(1, {"loss": 1.0})
    assert (tmp_path / "sft" / "metrics.jsonl").exists()


def test_hardware_and_versions_are_described() -> None:
    hardware = runs.describe_hardware()
    assert hardware["cpu"]
    assert hardware["cores"] == runs.available_cores() >= 1
    assert isinstance(hardware["memory_bytes"], int)
    assert hardware["memory_bytes"] > 2**28
    assert {"lmsmith", "python", "torch"} <= set(runs.describe_versions())


def test_peak_memory_is_of_what_came_after_the_reset() -> None:
    block = bytearray(300 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    high = runs.peak_memory_bytes()
    del block
    if not runs.reset_peak_memory():
        pytest.skip("the system does not allow the peak to be reset")
    assert runs.peak_memory_bytes() < high - 200 * 2**20


def test_commit_is_only_that_of_a_repository_that_holds_this_package(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "runs.py").write_text("")
    assert runs._git(tmp_path, "ls-files", "--error-unmatch", "runs.py") is None
    assert runs._git(tmp_path / "nowhere", "status") is None


@pytest.mark.parametrize(
    ("threads", "busy", "said"),
    [
        (0, 0.2, ""),
        (0, 1.4, "4 threads may be slower than 3 here"),
        (4, 6.0, "--set machine.threads=1"),
        (2, 1.4, ""),
        (2, 3.0, "2 threads may be slower than 1 here"),
        (1, 9.0, ""),
    ],
)
def test_a_busy_machine_is_told_of(
    monkeypatch: pytest.MonkeyPatch, threads: int, busy: float, said: str
) -> None:
    monkeypatch.setattr(runs, "available_cores", lambda: 4)
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(runs, "_busy_cores", lambda: busy)
    advice = runs.advice_on_threads(threads)
    assert said in advice
    assert bool(advice) == bool(said)


def test_the_work_of_others_is_measured() -> None:
    seconds = runs._busy_seconds()
    assert seconds is None or seconds > 0
    assert runs._busy_cores(0.01) >= 0
