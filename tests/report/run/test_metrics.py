"""Metrics are collected into one nested object, whole or partial; wrong folders are named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.report.run.metrics import collect_metrics
from lmsmith.runs.records import write_record


def test_metrics_are_nested_by_stage_and_evaluations_are_merged_in(whole_run: Path) -> None:
    metrics = collect_metrics(whole_run)
    assert metrics["ppo"] == {
        "iterations": 40.0,
        "wall_seconds": 236.0,
        "peak_memory_bytes": 1_234_000_000.0,
        "bits_per_byte": 1.8149,
        "reply_perplexity": 39.9,
        "win_rate": 0.684,
        "win_rate_low": 0.62,
        "win_rate_high": 0.744,
        "win_rate_length_controlled": 0.661,
        "win_rate_length_controlled_low": 0.59,
        "win_rate_length_controlled_high": 0.72,
        "kl": 2.31,
        "reply_tokens": 14.2,
    }
    assert metrics["pretrain"]["bits_per_byte"] == 1.7893
    assert metrics["pretrain"]["validation_bits_per_byte"] == 1.804
    assert metrics["sft"]["reply_perplexity"] == 38.4
    assert metrics["reward"]["accuracy"] == 0.612
    assert metrics["reward"]["accuracy_low"] == 0.574
    assert metrics["reward"]["longer_wins_accuracy"] == 0.521
    assert metrics["evaluate"] == {"wall_seconds": 58.2, "peak_memory_bytes": 1_234_000_000.0}
    assert metrics["wall_seconds"]["pretrain"] == 402.0
    stages = [name for name in metrics["wall_seconds"] if name != "total"]
    assert len(stages) == 10
    assert metrics["wall_seconds"]["total"] == pytest.approx(940.2)
    assert metrics["run"] == metrics["recipe"] == "quickstart"
    assert metrics["hardware"]["cores"] == 2
    assert metrics["versions"]["torch"] == "2.13.0"
    assert set(metrics["status"].values()) == {"done"}


def test_a_partial_run_has_the_metrics_it_has(partial_run: Callable[..., Path]) -> None:
    run = partial_run("data", "tokenizer")
    (run / "pretrain").mkdir()
    started = {"fingerprint": "x", "settings": {}, "inputs": {}, "wall_seconds": 12.5}
    (run / "pretrain" / "started.json").write_text(json.dumps(started))
    metrics = collect_metrics(run)
    assert metrics["status"]["pretrain"] == "started"
    assert metrics["status"]["ppo"] == "not run"
    assert "ppo" not in metrics
    assert metrics["wall_seconds"] == {
        "data": 3.2,
        "tokenizer": 4.9,
        "pretrain": 12.5,
        "total": pytest.approx(20.6),
    }


def test_a_stage_made_from_an_older_input_is_outdated_and_so_are_those_below(
    whole_run: Path,
) -> None:
    path = whole_run / "sft" / "stage.json"
    write_record(path, {**json.loads(path.read_text()), "fingerprint": "another"})
    status = collect_metrics(whole_run)["status"]
    assert status["pretrain"] == status["sft"] == status["data"] == "done"
    assert {s for s, state in status.items() if state == "outdated"} == {
        "rankings",
        "reward",
        "ppo",
        "judge_rankings",
        "judge",
        "evaluate",
    }


def test_what_is_not_finite_becomes_none_so_that_the_json_is_valid(whole_run: Path) -> None:
    path = whole_run / "ppo" / "stage.json"
    manifest = json.loads(path.read_text())
    manifest["metrics"] = {"steps": 3, "broken": None}
    write_record(path, manifest)
    metrics = collect_metrics(whole_run)
    assert metrics["ppo"]["broken"] is None
    json.dumps(metrics, allow_nan=False)


def test_the_recipe_may_stand_flat_in_its_file(whole_run: Path) -> None:
    path = whole_run / "recipe.json"
    manifest = json.loads(path.read_text())
    recipe = manifest.pop("recipe")
    path.write_text(json.dumps({**manifest, **recipe, "name": "mine"}))
    assert collect_metrics(whole_run)["recipe"] == "mine"


def test_an_unknown_folder_is_named_with_the_runs_near_it(
    partial_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the runs of the working folder count as near
    partial_run("data", name="quickstart")
    partial_run("data", name="evening")
    with pytest.raises(UserError) as error:
        collect_metrics(tmp_path / "runs" / "quickstrat")
    assert "quickstrat: no such folder" in error.value.problem
    first, second = error.value.fix.split(", ")
    assert first.endswith("quickstart")
    assert second.endswith("evening")


def test_a_stage_or_the_folder_of_runs_is_not_a_run_but_leads_to_one(whole_run: Path) -> None:
    for wrong in (whole_run / "sft", whole_run.parent):
        with pytest.raises(UserError, match="not a run folder") as error:
            collect_metrics(wrong)
        assert str(whole_run) in error.value.fix


def test_where_no_run_is_near_the_message_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "deep" / "file.txt"
    file.parent.mkdir()
    file.write_text("not a run")
    with pytest.raises(UserError, match="lmsmith run quickstart"):
        collect_metrics(file)


def test_collecting_metrics_imports_neither_torch_nor_matplotlib(whole_run: Path) -> None:
    code = (
        "import sys, pathlib; from lmsmith.report.run.metrics import collect_metrics;"
        "collect_metrics(pathlib.Path(sys.argv[1]));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole_run)], check=False)
    assert done.returncode == 0


def test_totals_are_finite(whole_run: Path) -> None:
    assert all(
        math.isfinite(value) for value in collect_metrics(whole_run)["wall_seconds"].values()
    )
