"""What the machine can do, and whether a run compiles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs import stage_folder
from lmsmith.training import machine as machine_module
from lmsmith.training.machine import (
    choose_compiling,
    compute_aside,
    evaluation_mode,
    measure_matrix_peak,
    resolve_machine,
    worth_compiling,
)


def test_auto_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, precision in (("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("other", "fp32")):
        for module in ("lmsmith.device", "lmsmith.training.machine"):
            monkeypatch.setattr(f"{module}.instruction_set", lambda found=found: found)
        machine = resolve_machine(MachineConfig())
        assert machine.precision == precision
        assert machine.instruction_set == found
        assert machine.threads >= 1
    assert resolve_machine(MachineConfig(precision="bf16")).dtype == torch.bfloat16
    assert resolve_machine(MachineConfig(threads=3)).threads == 3
    with pytest.raises(UserError, match="threads -3"):
        resolve_machine(MachineConfig(threads=-3))


def test_no_affinity_is_known_on_some_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert resolve_machine(MachineConfig()).threads == os.cpu_count()


def test_without_a_compiler_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    machine = resolve_machine(MachineConfig(compile="on"))
    assert (machine.compile, machine.compiler) == ("off", "")
    assert not worth_compiling(machine, 1e18)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resolve_machine(MachineConfig(compile="on")).compile == "off"
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.delenv("CXX")
    assert resolve_machine(MachineConfig(compile="on")).compile == "on"


def test_long_runs_are_worth_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "matrix_peak", lambda machine: 100.0)
    machine = replace(resolve_machine(MachineConfig()), compile="auto")
    assert not worth_compiling(machine, 1e6)
    assert worth_compiling(machine, 1e18)
    assert worth_compiling(replace(machine, compile="on"), 1.0)
    assert not worth_compiling(replace(machine, compile="off"), 1e18)


def test_measuring_the_peak_draws_nothing_from_torchs_generator() -> None:
    """Else dropout would depend on whether this process had measured before."""
    state = torch.get_rng_state()
    assert measure_matrix_peak("fp32", size=64, seconds=0.001) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("slow", "sizes"), [(0.0, [512, 512, 2048, 2048]), (1e9, [512, 512])])
def test_a_slow_processor_measures_its_peak_in_a_small_product(
    monkeypatch: pytest.MonkeyPatch, slow: float, sizes: list[int]
) -> None:
    """Emulated, a product of 2048 takes minutes; so does one in bf16 on an ARM without it."""
    monkeypatch.setattr(machine_module, "SLOW_GIGAFLOPS", slow)
    made: list[int] = []

    def few(size: int, _: int, generator: torch.Generator) -> torch.Tensor:
        made.append(size)
        return torch.ones(8, 8)

    measure_matrix_peak.cache_clear()
    monkeypatch.setattr(torch, "randn", few)
    assert measure_matrix_peak("fp32", seconds=0.001) > 0
    assert made == sizes
    measure_matrix_peak.cache_clear()


def test_an_old_arm_takes_one_thread_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's BLAS ends the process there by SIGILL: qemu's cortex-a57 shows it."""
    monkeypatch.setattr(machine_module, "available_cores", lambda: 4)
    monkeypatch.setattr(machine_module, "processes_here", lambda: 1)
    for found, threads in ({"atomics": False}, 1), ({"atomics": True}, 4), ({"avx2": True}, 4):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert resolve_machine(MachineConfig()).threads == threads
        assert resolve_machine(MachineConfig(threads=3)).threads == 3


def test_evaluation_mode_restores_what_was() -> None:
    training, evaluating = nn.Dropout().train(), nn.Dropout().eval()

    def fail() -> None:
        with evaluation_mode(training, evaluating):
            assert not training.training
            assert not torch.is_grad_enabled()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert (training.training, evaluating.training) == (True, False)
    assert torch.is_grad_enabled()


def test_autocast_is_bf16_or_nothing() -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with resolve_machine(MachineConfig(precision=precision)).autocast():  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_writing_text_does_not_import_the_compiler() -> None:
    script = (
        "import sys; from lmsmith import library; from lmsmith.core.recipe import MachineConfig\n"
        "from lmsmith.generation.machine import prepare_reading\n"
        "prepare_reading(MachineConfig())\n"
        "assert not {'torch._dynamo', 'torch._inductor'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux")
def test_what_is_computed_aside_leaves_no_team_of_threads() -> None:
    # A team that stays makes every barrier of the engine's own team sleep.
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def compute() -> int:
        left = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
        left @ left
        return threads()

    before = compute()  # this thread has its team now
    assert compute_aside(compute) > before
    ends = time.monotonic() + 10
    while threads() > before and time.monotonic() < ends:
        time.sleep(0.01)
    assert threads() == before


def test_what_fails_aside_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        compute_aside(lambda: 1 / 0)


def test_fewer_threads_aside_are_nobody_elses() -> None:
    """PyTorch keeps one number for all threads that have not computed yet."""
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert compute_aside(torch.get_num_threads, threads=1) == 1
        assert torch.get_num_threads() == 3
        found = list[int]()
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [3]
        assert compute_aside(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(usual)


MACHINE = replace(resolve_machine(MachineConfig()), compile="auto")


@pytest.mark.parametrize("first", [True, False])
def test_the_choice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    def at_speed(gigaflops: float) -> bool:
        monkeypatch.setattr(machine_module, "matrix_peak", lambda machine, found=gigaflops: found)
        return choose_compiling(MACHINE, 1e14, tmp_path / "checkpoints")

    slow, fast = 10.0, 1e6
    assert at_speed(slow if first else fast) is first
    assert at_speed(fast if first else slow) is first
    (tmp_path / "checkpoints/compiled.json").write_text("fal")
    assert at_speed(fast if first else slow) is not first


def test_what_the_user_said_holds(tmp_path: Path) -> None:
    assert choose_compiling(replace(MACHINE, compile="on"), 1.0, tmp_path)
    assert not choose_compiling(replace(MACHINE, compile="off"), 1e30, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory is Linux's")
def test_freed_memory_goes_back_where_the_system_has_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine_module.keep_freed_memory()
    before = machine_module.freed_bytes()
    blocks = [torch.ones(250_000) for _ in range(800)]  # 800 MB
    assert machine_module.freed_bytes() < before + 200_000_000
    del blocks
    freed = machine_module.freed_bytes()
    assert freed > before + 600_000_000
    monkeypatch.setattr(machine_module, "available_memory_bytes", lambda: 2 * freed + 100_000_000)
    assert not machine_module.give_back_freed_memory()
    assert machine_module.freed_bytes() > before + 600_000_000
    monkeypatch.setattr(machine_module, "available_memory_bytes", lambda: freed)
    assert machine_module.give_back_freed_memory()
    assert machine_module.freed_bytes() < before + 200_000_000
    assert not machine_module.give_back_freed_memory()


def test_a_containers_limit_counts_as_the_memory_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
    }
    monkeypatch.setattr(stage_folder, "_read_text", lambda path: files.get(path, ""))
    assert stage_folder.available_memory_bytes() == 5_120_000
    files["/sys/fs/cgroup/memory.max"] = "3000000\n"
    assert stage_folder.available_memory_bytes() == 2_000_000
    files.clear()
    assert stage_folder.available_memory_bytes() > 100_000_000  # the machine's
