"""The pipeline: what is done is skipped, what changed runs again, what was cut off continues."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.records import write_record
from lmsmith.stages import pipeline
from lmsmith.stages.pipeline import run_recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import tiny_stages as tiny  # noqa: E402


@pytest.fixture(autouse=True)
def peak_memory_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting a test process's garbage takes longer than these stages; see core/test_runs."""
    monkeypatch.setattr(pipeline, "reset_peak_memory", lambda: False)


class Watching(QuietProgress):
    """Keeps what a live view would have shown."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []

    def stage_skipped(self, stage: str, seconds: float) -> None:
        self.events.append(("skip", stage))

    def stage_begins(self, stage: str, reason: str) -> None:
        self.events.append(("begin", reason))

    def stage_ends(self, stage: str, seconds: float) -> None:
        self.events.append(("end", stage))


def recipe(seed: int = 1, machine: MachineConfig | None = None, **tables: Any) -> Recipe:
    """The tiny recipe; ``grow={"rate": 1.0}`` changes a stage, ``grow=None`` leaves it out."""
    stages = {"make": {}, "grow": {}, "measure": {}, **tables}
    made: dict[str, object] = {
        name: tiny.TinyConfig(**table) for name, table in stages.items() if table is not None
    }
    return Recipe("tiny", "", seed, machine or MachineConfig(), made)


def go(folder: Path, recipe: Recipe, **options: Any) -> dict[str, Any]:
    result = run_recipe(recipe, folder, stages=tiny.STAGES, prepare=tiny.prepare, **options)
    return {name: (entry["action"], entry["reason"]) for name, entry in _stages(result).items()}


def _stages(result: dict[str, object]) -> dict[str, Any]:
    stages = result["stages"]
    assert isinstance(stages, dict)
    return stages


def record(folder: Path, stage: str, name: str = "stage.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / stage / name).read_text())
    return loaded


def contents(folder: Path) -> dict[str, bytes]:
    """The stages' outputs, without records and times."""
    files = [path for path in folder.rglob("*.txt") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_first_run_makes_every_stage_and_records_it(tmp_path: Path) -> None:
    watching = Watching()
    result = run_recipe(
        recipe(), tmp_path, progress=watching, stages=tiny.STAGES, prepare=tiny.prepare
    )
    assert [event for event in watching.events if event[0] == "begin"] == [
        ("begin", f"{name}: not run yet") for name in ("make", "grow", "measure")
    ]
    written = record(tmp_path, "grow")
    assert written["status"] == "done"
    assert written["stage"] == "grow"
    assert written["settings"]["rate"] == 0.02
    assert written["metrics"] == {"loss": 1 / 3}
    assert written["inputs"] == {
        "base": {"stage": "make", "files": record(tmp_path, "make")["outputs"]}
    }
    assert set(written["outputs"]) == {"link.txt", "model/copy.txt"}
    assert written["machine"] == {"precision": "fp32"}
    assert written["peak_memory_bytes"] > 1_000_000
    assert written["warnings"] == ["a warning"]
    assert written["hardware"]["cores"] >= 1
    assert _stages(result)["grow"]["metrics"] == {"loss": 1 / 3}
    assert not (tmp_path / "grow" / "started.json").exists()
    assert not (tmp_path / "grow" / "checkpoints").exists()
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["seed"] == 1


def test_second_run_skips_everything_and_touches_nothing(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    watching = Watching()
    actions = go(tmp_path, recipe(), progress=watching)
    assert {action for action, _ in actions.values()} == {"skip"}
    assert watching.events == [("skip", name) for name in ("make", "grow", "measure")]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before


def test_changed_setting_reruns_its_stage_and_those_below_and_says_why(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    changed = recipe(grow={"rate": 0.01})
    expected = {
        "make": ("skip", "done, nothing changed"),
        "grow": ("run", "rate changed 0.02 → 0.01"),
        "measure": ("run", "its input grow changed (link.txt, model/copy.txt)"),
    }
    foreseen = ("depends", "runs if what it reads of grow changes")
    assert go(tmp_path, changed, dry_run=True) == {**expected, "measure": foreseen}
    assert record(tmp_path, "grow")["settings"]["rate"] == 0.02  # a dry run changed nothing
    assert go(tmp_path, changed) == expected
    assert {action for action, _ in go(tmp_path, changed).values()} == {"skip"}
    go(fresh := tmp_path / "fresh", changed)
    assert contents(fresh)["measure/link.txt"] == contents(tmp_path)["measure/link.txt"]


def test_seed_and_precision_count_and_the_rest_of_machine_does_not(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    threads = MachineConfig(threads=1, compile="off", deterministic=False)
    assert go(tmp_path, recipe(machine=threads), dry_run=True)["make"][0] == "skip"
    other = MachineConfig(precision="fp32")
    reasons = go(tmp_path, recipe(seed=2, machine=other), dry_run=True)
    assert reasons["make"] == ("run", "seed changed 1 → 2; precision changed auto → fp32")


def test_changed_file_is_noticed_and_a_touched_one_is_not(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("one")
    named = recipe(make={"files": (str(text),)})
    go(tmp_path / "run", named)
    os.utime(text, ns=(1, 1))
    assert go(tmp_path / "run", named)["make"][0] == "skip"
    text.write_text("two")
    reason = f"the file {text} changed"
    assert go(tmp_path / "run", named, dry_run=True)["make"] == ("run", reason)
    text.unlink()
    with pytest.raises(UserError, match="no such file"):
        go(tmp_path / "run", named)


def test_new_code_format_makes_the_stage_again(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    stages = [replace(tiny.STAGES[0], format=2), *tiny.STAGES[1:]]
    result = run_recipe(recipe(), tmp_path, dry_run=True, stages=stages, prepare=tiny.prepare)
    assert _stages(result)["make"]["reason"] == "this version of lmsmith makes make differently"


def test_optional_input_that_appears_reruns_the_stage(tmp_path: Path) -> None:
    stages = (tiny.STAGES[0], tiny.STAGES[1], tiny.STAGES[3], tiny.STAGES[2])
    prepare = tiny.prepare
    run_recipe(recipe(), tmp_path, stages=stages, prepare=prepare)
    result = run_recipe(recipe(side={}), tmp_path, stages=stages, prepare=prepare)
    assert _stages(result)["measure"]["reason"] == "its input side is new"


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_output_is_made_again(tmp_path: Path, damage: str) -> None:
    go(tmp_path, recipe())
    before = contents(tmp_path)
    output = tmp_path / "grow" / "model" / "copy.txt"
    output.unlink() if damage == "missing" else output.write_text("cut")
    reason = "is missing" if damage == "missing" else "has 3 bytes instead of 64"
    actions = go(tmp_path, recipe())
    assert actions["grow"] == ("run", f"its output model/copy.txt {reason}")
    assert actions["measure"][0] == "skip"  # the same bytes came out
    assert contents(tmp_path) == before


def test_damaged_record_is_noticed_and_the_stage_made_again(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    path = tmp_path / "make" / "stage.json"
    whole = path.read_bytes()
    place = whole.index(b'"loss"') + 1
    path.write_bytes(whole[:place] + b"m" + whole[place + 1 :])
    assert "stage.json is damaged" in go(tmp_path, recipe(), dry_run=True)["make"][1]
    path.write_bytes(whole[: len(whole) // 2])
    assert "stage.json is damaged" in go(tmp_path, recipe())["make"][1]
    assert path.read_bytes() != whole[: len(whole) // 2]


def test_input_that_came_out_differently_reruns_what_was_made_from_it(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    written = record(tmp_path, "make")
    written["outputs"]["link.txt"] = "0" * 64
    write_record(tmp_path / "make" / "stage.json", written)
    actions = go(tmp_path, recipe(), dry_run=True)
    assert actions["make"][0] == "skip"
    assert actions["grow"] == ("run", "its input make changed (link.txt)")


def test_only_runs_one_stage_and_wants_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="input make is not ready") as caught:
        go(tmp_path, recipe(), only="grow")
    assert "--only make" in str(caught.value)
    assert go(tmp_path, recipe(), only="make") == {"make": ("run", "not run yet")}
    assert list(go(tmp_path, recipe(), only="grow")) == ["grow"]
    assert not (tmp_path / "measure").exists()
    with pytest.raises(UserError, match="no such stage"):
        go(tmp_path, recipe(), only="grwo")


def test_dry_run_makes_nothing(tmp_path: Path) -> None:
    go(tmp_path / "run", recipe(), dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "grow").mkdir()
    (tmp_path / "grow" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="in the way"):
        go(tmp_path, recipe())
    assert (tmp_path / "grow" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "make").exists()


def test_sigterm_saves_and_the_same_run_continues(tmp_path: Path) -> None:
    interrupted = recipe(grow={"steps": 5, "signal_at": 2})
    with pytest.raises(Interrupted) as caught:
        go(tmp_path / "cut", interrupted)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    cut = tmp_path / "cut" / "grow"
    first_seconds = record(tmp_path / "cut", "grow", "started.json")["wall_seconds"]
    assert (cut / "checkpoints" / "last.txt").exists()
    watching = Watching()
    assert go(tmp_path / "cut", interrupted, progress=watching)["grow"][0] == "continue"
    assert "continues" in watching.events[1][1]
    assert record(tmp_path / "cut", "grow")["wall_seconds"] > first_seconds
    assert [row["step"] for row in read_metrics(cut / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    go(tmp_path / "whole", recipe(grow={"steps": 5}))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_interrupted_stage_with_another_setting_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(tmp_path, recipe(make={"steps": 5, "signal_at": 2}))
    (tmp_path / "make" / "left.txt").write_text("from before")
    actions = go(tmp_path, recipe(make={"steps": 4}))
    assert actions["make"][0] == "run"
    assert "steps changed 5 → 4" in actions["make"][1]
    assert not (tmp_path / "make" / "left.txt").exists()


READS_LINK = {"base": ("link.txt",), "model": ("link.txt",)}


def test_an_output_that_is_not_read_repeats_nothing(tmp_path: Path) -> None:
    stages = [replace(stage, reads=READS_LINK) for stage in tiny.STAGES]
    run_recipe(recipe(), tmp_path, stages=stages, prepare=tiny.prepare)
    result = run_recipe(
        recipe(make={"write_bytes": 10}), tmp_path, stages=stages, prepare=tiny.prepare
    )
    actions = {name: entry["action"] for name, entry in _stages(result).items()}
    assert actions == {"make": "run", "grow": "skip", "measure": "skip"}
    assert record(tmp_path, "make")["outputs"]["large.bin"]


def test_finished_outputs_stay_until_the_new_ones_are_complete(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    before = contents(tmp_path / "grow")
    changed = recipe(grow={"steps": 5, "signal_at": 2})
    with pytest.raises(Interrupted):
        go(tmp_path, changed)
    assert contents(tmp_path / "grow") == before
    assert record(tmp_path, "grow")["settings"]["steps"] == 3
    assert go(tmp_path, changed, dry_run=True)["grow"][0] == "continue"
    assert go(tmp_path, changed)["grow"][0] == "continue"
    go(tmp_path / "whole", recipe(grow={"steps": 5}))
    assert contents(tmp_path / "grow") == contents(tmp_path / "whole" / "grow")
    steps = [row["step"] for row in read_metrics(tmp_path / "grow" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.glob(".*") if path.name != ".lock"] == []


def test_a_setting_taken_back_finds_the_outputs_of_before(tmp_path: Path) -> None:
    go(tmp_path, recipe())
    with pytest.raises(Interrupted):
        go(tmp_path, recipe(grow={"steps": 5, "signal_at": 2}))
    assert {action for action, _ in go(tmp_path, recipe()).values()} == {"skip"}
    assert [path.name for path in tmp_path.glob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("at", ["first", "second"])
def test_killed_while_the_new_outputs_take_their_place(tmp_path: Path, at: str) -> None:
    go(tmp_path / "run", recipe())
    go(tmp_path / "new", recipe(grow={"rate": 0.5}))
    (tmp_path / "new" / "grow").rename(tmp_path / "run" / ".grow.next")
    if at == "second":
        (tmp_path / "run" / "grow").rename(tmp_path / "run" / ".grow.removed")
    actions = go(tmp_path / "run", recipe(grow={"rate": 0.5}))
    assert [action for action, _ in actions.values()] == ["skip", "skip", "run"]
    new = {"grow/link.txt", "grow/model/copy.txt"}
    there = contents(tmp_path / "run")
    assert new <= set(there)
    assert [path.name for path in (tmp_path / "run").glob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_stage_folder_may_be_a_link(tmp_path: Path, kept: bool) -> None:
    go(tmp_path / "run", recipe())
    elsewhere = tmp_path / "large disk"
    (tmp_path / "run" / "grow").rename(elsewhere)
    (tmp_path / "run" / "grow").symlink_to(elsewhere)
    if kept:
        assert go(tmp_path / "run", recipe())["grow"][0] == "skip"
        assert go(tmp_path / "run", recipe(grow={"rate": 0.5}))["grow"][0] == "run"
        assert record(elsewhere.parent, elsewhere.name)["settings"]["rate"] == 0.02
    else:
        shutil.rmtree(elsewhere)
        with pytest.raises(UserError, match="in the way"):
            go(tmp_path / "run", recipe())


def test_programming_error_keeps_its_traceback_and_the_work(tmp_path: Path) -> None:
    failing = recipe(make={"fail_at": 2})
    with pytest.raises(RuntimeError, match="a programming error"):
        go(tmp_path, failing)
    assert (tmp_path / "make" / "checkpoints" / "last.txt").exists()
    assert go(tmp_path, failing)["make"][0] == "continue"


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    source = str(HERE.parent.parent / "src")
    return subprocess.Popen(
        [sys.executable, str(HERE / "run_tiny.py"), str(folder), *overrides],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(HERE)])},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, *overrides: str) -> tuple[int, str]:
    process = start(folder, *overrides)
    _, message = process.communicate(timeout=60)
    return process.returncode, message


SLOW = ("make.pause=0.02", "grow.pause=0.02", "measure.pause=0.02", "grow.steps=8")


def test_killed_at_random_moments_ends_as_an_unbroken_run(tmp_path: Path) -> None:
    assert finish(tmp_path / "whole", *SLOW)[0] == 0
    chance = random.Random(3)
    kills = 0
    for _ in range(20):
        process = start(tmp_path / "cut", *SLOW)
        time.sleep(0.1 + 0.25 * chance.random())
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0 or kills >= 6:
            break
    assert kills > 0
    code, message = finish(tmp_path / "cut", *SLOW)
    assert code == 0, message
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    steps = [row["step"] for row in read_metrics(tmp_path / "cut" / "grow" / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    hidden = [path.name for path in (tmp_path / "cut").rglob(".*") if path.name != ".lock"]
    assert hidden == []


def test_killed_while_a_finished_stage_runs_again(tmp_path: Path) -> None:
    changed = ("grow.pause=0.05", "grow.steps=8", "grow.rate=0.5")
    assert finish(tmp_path / "cut")[0] == finish(tmp_path / "whole", *changed)[0] == 0
    before = contents(tmp_path / "cut")
    process = start(tmp_path / "cut", *changed)
    deadline = time.monotonic() + 30
    while not (tmp_path / "cut" / ".grow.next" / "checkpoints" / "last.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    there = contents(tmp_path / "cut")
    assert {name: there[name] for name in before} == before
    assert finish(tmp_path / "cut", *changed)[0] == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_ends_with_one_message_and_its_code(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, "make.steps=1000", "make.pause=0.02")
    deadline = time.monotonic() + 30
    while not (tmp_path / "make" / "checkpoints" / "last.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert message.endswith("saved; run the same command to continue\n")
    assert "Traceback" not in message


def test_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, "make.steps=1000", "make.pause=0.02")
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "make" / "started.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(UserError, match=f"at work here .process {process.pid}"):
            go(tmp_path, recipe())
    finally:
        process.kill()
        process.communicate()
    go(tmp_path, recipe())  # the lock of a killed process is gone


def test_full_disk_is_one_message_and_the_run_goes_on_after(tmp_path: Path) -> None:
    code, message = finish(tmp_path, "grow.write_bytes=200000", "limit=100000")
    assert code == 2
    assert "Traceback" not in message
    assert "run the same command again" in message
    assert finish(tmp_path, "grow.write_bytes=200000")[0] == 0
    assert "write_bytes" in record(tmp_path, "grow")["settings"]


def test_full_disk_on_a_real_full_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        code, message = finish(disk / "run", "grow.write_bytes=300000")
        assert code == 2
        assert "the disk is full" in message
        assert "Traceback" not in message
        assert record(disk / "run", "make")["status"] == "done"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
