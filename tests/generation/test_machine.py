"""Models are read in the precision that is fastest here, which one measurement decides for good."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation import machine, precision
from lmsmith.generation.kernels import TorchKernels
from lmsmith.generation.precision import MARGIN, Speed, fastest, fastest_precision, measure
from lmsmith.generation.weights import Weight

SLOW, FAST = Speed(10.0, 1.0), Speed(1.0, 0.5)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Speed, Speed]]:
    """What measurements find, in bf16 and in float32; one more is an error."""
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path))
    speeds: list[tuple[Speed, Speed]] = []
    monkeypatch.setattr(precision, "measure", lambda: speeds.pop())
    return speeds


def auto() -> str:
    return machine.resolve_for_reading(MachineConfig()).precision


def test_what_is_measured_first_is_kept(found: list[tuple[Speed, Speed]], tmp_path: Path) -> None:
    found.append((SLOW, FAST))
    assert auto() == "fp32"
    precision._kept.cache_clear()  # as another process
    assert auto() == "fp32"
    (kept,) = tmp_path.glob("precision-*.json")
    kept.write_text("damaged")
    precision._kept.cache_clear()
    found.append((FAST, SLOW))
    assert auto() == "bf16"
    precision._kept.cache_clear()
    assert auto() == "bf16"


def test_a_named_precision_is_not_measured(found: list[tuple[Speed, Speed]]) -> None:
    for named in ("fp32", "bf16"):
        config = MachineConfig(precision=named)  # type: ignore[arg-type]
        assert machine.resolve_for_reading(config).precision == named


@pytest.mark.parametrize(
    ("instructions", "kernels", "usual"),
    [("other", True, "bf16"), ("other", False, "fp32"), ("avx512_bf16", False, "bf16")],
)
def test_about_as_fast_is_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
    found: list[tuple[Speed, Speed]],
    instructions: str,
    kernels: bool,
    usual: str,
) -> None:
    monkeypatch.setattr("lmsmith.device.instruction_set", lambda: instructions)
    monkeypatch.setattr(machine, "load_library", lambda: object() if kernels else None)
    slower = Speed(MARGIN * 0.99 * FAST.one_row, MARGIN * 0.99 * FAST.of_many)
    found.append((slower, FAST) if usual == "bf16" else (FAST, slower))
    assert auto() == usual


def test_the_prompt_counts_beside_the_reply() -> None:
    reads_fast = Speed(1.0, 5.0)  # but computes slowly
    assert fastest("fp32", reads_fast, Speed(2.0, 0.1)) == "fp32"
    assert fastest("bf16", reads_fast, Speed(2.0, 0.1)) == "fp32"
    assert fastest("fp32", FAST, Speed(2.0, 0.5)) == "bf16"


def test_the_measurement_sees_which_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in one precision are done many times over."""
    monkeypatch.setattr(precision, "OUTPUTS", 512)
    for slow, usual in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):

        class Hindered(TorchKernels):
            def linear(
                self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
            ) -> Tensor:
                for _ in range(100 if dtype == slow else 1):  # noqa: B023
                    result = super().linear(x_ni, weight, dtype, add_to)
                return result

        monkeypatch.setattr(precision, "best_kernels", Hindered)
        threads = torch.get_num_threads()
        bf16, fp32 = measure()
        assert torch.get_num_threads() == threads
        assert min(bf16.one_row, bf16.of_many, fp32.one_row, fp32.of_many) > 0
        assert fastest(usual, bf16, fp32) != usual  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[Speed, Speed]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path / "file" / "cache"))
    found.append((FAST, SLOW))
    assert fastest_precision("bf16").precision == "bf16"
