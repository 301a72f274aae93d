"""What was chosen at a run's first start holds when it is continued at another speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.core.recipe import MachineConfig
from lmsmith.training import machine as machine_module
from lmsmith.training.compiling import choose_compiling
from lmsmith.training.machine import resolve_machine

MACHINE = replace(resolve_machine(MachineConfig()), compile="auto")


@pytest.mark.parametrize("first", [True, False])
def test_the_choice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    def at_speed(gigaflops: float) -> bool:
        monkeypatch.setattr(machine_module, "measure_matrix_peak", lambda precision: gigaflops)
        return choose_compiling(MACHINE, 1e14, tmp_path / "checkpoints")

    slow, fast = 10.0, 1e6
    assert at_speed(slow if first else fast) is first
    assert at_speed(fast if first else slow) is first
    (tmp_path / "checkpoints/compiled.json").write_text("fal")
    assert at_speed(fast if first else slow) is not first


def test_what_the_user_said_holds(tmp_path: Path) -> None:
    assert choose_compiling(replace(MACHINE, compile="on"), 1.0, tmp_path)
    assert not choose_compiling(replace(MACHINE, compile="off"), 1e30, tmp_path)
