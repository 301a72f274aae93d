"""Models are read in the precision that is fastest here."""

from __future__ import annotations

import pytest

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation import machine
from lmsmith.training import machine as training


@pytest.mark.parametrize(
    ("instructions", "kernels", "asked", "chosen"),
    [
        ("other", True, "auto", "bf16"),
        ("other", False, "auto", "fp32"),
        ("other", True, "fp32", "fp32"),
        ("avx512_bf16", False, "auto", "bf16"),
        ("avx512_bf16", True, "fp32", "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_kernels_read_it(
    monkeypatch: pytest.MonkeyPatch, instructions: str, kernels: bool, asked: str, chosen: str
) -> None:
    monkeypatch.setattr("lmsmith.device.instruction_set", lambda: instructions)
    monkeypatch.setattr(machine, "load_library", lambda: object() if kernels else None)
    config = MachineConfig(precision=asked)  # type: ignore[arg-type]
    assert machine.resolve_for_reading(config).precision == chosen
    if asked == "auto" and instructions == "other":
        assert training.resolve_machine(config).precision == "fp32"
