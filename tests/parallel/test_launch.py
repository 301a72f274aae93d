"""What ended the processes of a run, of all that their ends say: one message."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmsmith import cli
from lmsmith.core.errors import Interrupted, PeerLost, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.stages.pipeline import load_stage_recipe, run_recipe, work_along
from lmsmith.training import parallel
from lmsmith.training.launch import AlreadyShown, _reason


def ended(code: int, message: str = "") -> Any:
    data = {"message": {"message": message}} if message else None
    return SimpleNamespace(exitcode=code, error_file_data=data)


@pytest.mark.parametrize(
    ("ends", "kind", "said"),
    [
        ({0: ended(75, "lost"), 2: ended(-9)}, PeerLost, "process 2 of 4 was ended by signal 9"),
        ({1: ended(-15), 3: ended(-15)}, PeerLost, "process 1 of 4 was ended by signal 15"),
        ({0: ended(2), 1: ended(2, "no text")}, AlreadyShown, ""),
        ({1: ended(2, "no text")}, UserError, "process 1 of 4: no text"),
        ({0: ended(75, "process 1 is late"), 1: ended(-15)}, PeerLost, "process 1 is late"),
        ({3: ended(75, "lost"), 1: ended(1, "KeyError: 'a'")}, UserError, "KeyError: 'a'"),
        ({0: ended(75, "lost"), 1: ended(-7)}, PeerLost, "SIGBUS; a file that it read was cut off"),
        ({0: ended(75, "lost"), 1: ended(-6)}, PeerLost, "process 1 of 4 was ended by signal 6"),
        ({3: ended(1)}, PeerLost, "process 3 of 4 ended with exit code 1"),
    ],
)
def test_one_reason_is_given(ends: dict[int, Any], kind: type[UserError], said: str) -> None:
    found = _reason(ends, 4)
    assert type(found) is kind
    assert said in str(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_all_agreed_on_is_an_interruption(number: signal.Signals) -> None:
    found = _reason({0: ended(128 + number), 1: ended(128 + number)}, 2)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 128 + number


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "processes = 0"),
        (["--processes", "2", "--set", "ppo.iterations=0"], "ppo.iterations"),
    ],
)
def test_mistakes_are_found_before_any_process_starts(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lmsmith.training.launch.launch", lambda *_: pytest.fail("started"))
    assert cli.main(["run", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err


def test_torchruns_processes_start_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "quickstart", "--processes", "2"]) == 2
    assert "torchrun has started several already" in capsys.readouterr().err


def test_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("lmsmith.cli.processes.FIRST_SECONDS", 0.0)
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert cli.main(["run", "no-such-recipe"]) == 2
    assert capsys.readouterr() == ("", "")
    assert "no-such-recipe" in file.read_text()


def test_a_full_disk_of_a_process_that_does_not_lead_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "part.jsonl"))

    monkeypatch.setattr("lmsmith.stages.rankings.run", full)
    monkeypatch.setattr(parallel, "hear", lambda: {"stage": "rankings", "working": str(tmp_path)})
    recipe = Recipe("r", "", 1, MachineConfig(threads=1), {"rankings": None})
    with pytest.raises(UserError, match=r"part.jsonl: the disk is full"):
        work_along(recipe, tmp_path)


def test_fewer_rollouts_than_processes_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "9")
    settings = [
        "ppo.rollouts=8",
        "ppo.minibatch=8",
        f"data.conversations=['{tmp_path / 'a.jsonl'}']",
    ]
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n')
    recipe = load_stage_recipe("quickstart", settings)
    with pytest.raises(UserError, match=r"ppo.rollouts = 8 for 9 processes: each needs one"):
        run_recipe(recipe, tmp_path / "run", progress=QuietProgress())
    assert not (tmp_path / "run/data").exists()


def test_torchrun_starts_no_other_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All processes would do the same, and write the same files at the same time."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert cli.main(["feedback", "sample", "m"]) == 2
    assert "feedback sample: torchrun would start it in every process" in capsys.readouterr().err
