"""lmsmith study scale, from the command line to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmsmith import cli
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.models.folder import load_model
from lmsmith.report.study.scale_page import scale_record
from lmsmith.studies.scale import running
from lmsmith.studies.scale.findings import predict_losses
from lmsmith.studies.scale.texts import PATTERNS

COMMON = ["--precision", "fp32", "--threads", "1", "--compile", "off", "--rows", "10"]
SMALL = ["--sizes", "1x32,2x32,2x64,3x64,2x96", "--steps", "2", "--items", "12", "--out", "out"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["study", "scale", *words, *COMMON, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    found: dict[str, Any] = json.loads(out.out)
    return found


def test_a_family_is_trained_measured_and_drawn_once(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study(capsys, *SMALL)
    assert [model["model"] for model in found["models"]] == ["1x32", "2x32", "2x64", "3x64", "2x96"]
    largest = found["models"][-1]
    assert list(largest["patterns"]) == ["noisy_copies", "remove_symbols", "reorder"]
    assert list(largest["patterns"]["noisy_copies"]) == ["0", "1", "2", "4", "8", "16"]
    assert largest["sums"]["chain"]["3"]["items"] == 12
    assert largest["sums"]["direct"]["3"]["low"] <= largest["sums"]["direct"]["3"]["value"]
    assert largest["compute"] > found["models"][0]["compute"]
    assert 4.0 < largest["losses"]["sentences"]["value"] < 6.0  # ln 261 = 5.56 untrained
    assert {rise["what"] for rise in found["rises"]} == {"shots", "size", "chain"}
    assert found["best_accuracy"]["noisy_copies"]["1"] == pytest.approx(0.7375**3)
    assert found["predictions"]["sentences"]["measured"] == largest["losses"]["sentences"]["value"]
    page = Path(found["report"]).read_text()
    assert page.count("<svg") == 8
    assert "Remove symbols" in page
    assert page.count("<td>all that the examples tell, on average</td>") == 1
    assert not re.search(r'(?:src|href)="(?!#)', page)
    kept = json.loads((here / "out/results.json").read_text())
    assert kept["models"] == found["models"]
    load_model(here / "out/2x96/model")
    monkeypatch.setattr(running, "_train", None)  # nothing is trained or measured again
    monkeypatch.setattr(running, "measure", None)
    assert study(capsys, *SMALL) == found


def test_a_study_that_was_stopped_goes_on_to_the_same_numbers(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--sizes", "1x32,1x64", "--steps", "3", "--items", "10"]
    whole = study(capsys, *words, "--out", "whole")
    calls: list[int] = []
    from lmsmith.training import language_model, loop

    def stop_after_four() -> int | None:
        calls.append(1)
        return 2 if len(calls) == 4 else None  # in the first step of the second model

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", stop_after_four)
        with pytest.raises(Interrupted):
            running_study(words)
    assert (here / "parts/1x32/measured.json").is_file()
    assert not (here / "parts/1x64/trained.json").exists()
    trained: list[int] = []
    real = language_model.accumulate_gradients

    def counted(*given: Any, **named: Any) -> Any:
        trained.append(1)
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "accumulate_gradients", counted)
        again = study(capsys, *words, "--out", "parts")
    assert len(trained) == 2
    timings = ("tokens_per_second", "share_of_peak")
    for one, other in zip(whole["models"], again["models"], strict=True):
        for name in set(one) - set(timings):
            assert one[name] == other[name], name


def running_study(words: list[str]) -> None:
    from lmsmith.api import study_scale

    study_scale(
        sizes=words[1],
        steps=int(words[3]),
        items=int(words[5]),
        rows=10,
        precision="fp32",
        threads=1,
        compile="off",
        out=Path("parts"),
        quiet=True,
    )


def test_a_folder_with_other_settings_is_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sizes", "1x32,1x64", "--steps", "1", "--items", "10", "--out", "out"]
    study(capsys, *words)
    before = (here / "out/1x32/measured.json").read_bytes()
    words[3] = "2"
    assert cli.main(["study", "scale", *words, *COMMON, "--quiet"]) == 2
    assert "steps was 1, now 2" in capsys.readouterr().err
    assert (here / "out/1x32/measured.json").read_bytes() == before


def test_minutes_become_steps_once(capsys: pytest.CaptureFixture[str]) -> None:
    # 100 steps at least: too long for a test, so the plan alone is made.
    from lmsmith.core.progress import QuietProgress
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.studies.scale.running import read_sizes
    from lmsmith.training.machine import resolve_machine

    machine = resolve_machine(MachineConfig(precision="fp32", threads=1))
    wanted = running.ScalePlan(read_sizes("1x32,1x64", 261), 0, 10, 10, 0, "fp32")
    plan = running.settle_plan(Path("out"), wanted, 0.2, machine, QuietProgress())
    assert running.FEWEST_STEPS <= plan.steps <= running.MOST_STEPS
    assert running.settle_plan(Path("out"), wanted, 0.2, machine, QuietProgress()) == plan
    with pytest.raises(UserError, match=r"minutes was 0\.2, now 0\.3"):
        running.settle_plan(Path("out"), wanted, 0.3, machine, QuietProgress())


def test_rises_are_clear_where_intervals_are_apart() -> None:
    def model(name: str, accuracy: int, chain: int) -> dict[str, Any]:
        shots = {str(k): [accuracy * (k > 0) * min(k, 16) // 16, 100] for k in (0, 1, 2, 4, 8, 16)}
        return {
            "model": name,
            "layers": 2,
            "compute": 1.0,
            "patterns": dict.fromkeys(PATTERNS, shots),
            "sums": {
                "direct": {str(d): [10, 100] for d in range(1, 5)},
                "chain": {str(d): [chain, 100] for d in range(1, 5)},
            },
            "losses": {
                family: {"value": 1.0, "low": 0.9, "high": 1.1}
                for family in ("patterns", "sums", "sentences")
            },
        }

    plan = running.ScalePlan((), 1, 10, 10, 0, "fp32")
    good = scale_record(plan, [model("a", 5, 12), model("b", 95, 90)])["rises"]
    assert [rise["what"] for rise in good] == ["shots", "size", "chain", "chain"]
    assert all(rise["is_clear"] for rise in good)
    assert [r["high"] for r in good[2:]] == ["b, chain of thought"] * 2
    assert [r["task"] for r in good[2:]] == ["sums of 3 digits", "sums of 4 digits"]
    assert good[1]["before"]["value"] == pytest.approx(0.12)  # of all digits together
    flat = scale_record(plan, [model("a", 90, 12), model("b", 95, 15)])["rises"]
    assert [rise["is_clear"] for rise in flat] == [True] + [False] * 3


def test_no_law_is_fitted_to_models_of_one_layer() -> None:
    def model(layers: int, compute: float, loss: float) -> dict[str, Any]:
        losses = {family: {"value": loss} for family in ("patterns", "sums", "sentences")}
        return {"layers": layers, "compute": compute, "losses": losses}

    deeper = [model(2, c, 50.0 * c**-0.2 + 0.7) for c in (1e12, 4e12, 2e13, 1e14)]
    alone = predict_losses(deeper)
    assert alone["sums"] is not None
    assert alone["sums"].error == pytest.approx(0.0, abs=1e-3)
    assert predict_losses([model(1, 5e11, 9.0), *deeper]) == alone
    assert predict_losses([model(1, 5e11, 9.0), *deeper[1:]])["sums"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "2x32"], "two sizes or more"),
        (["--sizes", "2x32,2x32"], "named twice"),
        (["--sizes", "2x32,big"], "--sizes big: not layers x width"),
        (["--sizes", "2x32,2x50"], "multiple of 32"),
        (["--sizes", "2x32,0x64"], "0 layers"),
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--steps", "-1"], "--steps -1"),
        (["--items", "3"], "--items 3"),
        (["--rows", "2"], "--rows 2"),
    ],
)
def test_mistakes_are_told_in_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(["study", "scale", *words, "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("evals").exists()
