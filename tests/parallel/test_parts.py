"""Checkpoints of a model in parts: written by N processes, read by M; whole, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parts_together import HALFWAY, STEPS
from safetensors import safe_open
from test_parallel import HERE, environment

from lmsmith.core.files import sha256_file
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.training.checkpoint import CHECKSUMS, SCALARS, TENSORS, Checkpoints
from lmsmith.training.checkpoint_parts import PARTS, read_parts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `parts_together` makes, in a program of its own: it forks."""
    folder = tmp_path_factory.mktemp("parts")
    command = [sys.executable, str(HERE / "parts_together.py"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def losses(folder: Path) -> list[float]:
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run ended with, read by one process without parts."""
    step, state = Checkpoints(folder / "checkpoints").load_latest() or (0, {})
    assert step == STEPS
    return dict(tensors_of(state["parts"], ""))


def tensors_of(state: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield place, state
    elif isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in items:
            yield from tensors_of(value, f"{place}/{key}")


def newest(folder: Path) -> Path:
    checkpoints = Checkpoints(folder / "checkpoints")
    return checkpoints.path(checkpoints.saved_steps()[-1])


@pytest.mark.parametrize("name", ["damaged", "killed-0"])
def test_the_same_number_continues_with_the_same_bits(made: Path, name: str) -> None:
    """Weights, both optimisers' states and the best weights, whatever stopped the run."""
    whole, continued = last_state(made / "2"), last_state(made / name)
    assert list(whole) == list(continued)
    assert any("momentum_buffer" in name for name in whole)
    assert any("exp_avg_sq" in name for name in whole)
    assert any("best" in name for name in whole)
    for place, value in whole.items():
        assert torch.equal(value, continued[place]), place


@pytest.mark.parametrize("name", ["2", "1-2", "2-1", "2-2whole", "2-4"])
def test_another_number_continues_to_rounding(made: Path, name: str) -> None:
    alone = losses(made / "1")
    assert losses(made / name) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == STEPS


def test_each_process_writes_its_part_and_nothing_is_pickled(made: Path) -> None:
    folder = newest(made / "2")
    numbers = []
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
            continue
        with safe_open(path, "pt") as file:  # refuses whatever else a file holds
            count = sum(file.get_slice(name).get_shape() != [] for name in file.keys())  # noqa: SIM118
            numbers.append((path.name, count))
    names = {name for name, _ in numbers}
    assert {path.name for path in folder.iterdir()} == names | {SCALARS, CHECKSUMS}
    assert set(json.loads((folder / CHECKSUMS).read_text())) == names | {SCALARS}
    assert len(names) > 4  # some processes have more than one file
    sizes = [
        sum(path.stat().st_size for path in folder.glob(f"shard-{rank:05d}-*")) for rank in (1, 2)
    ]
    whole = (newest(made / "1") / TENSORS).stat().st_size
    assert max(sizes) < 0.75 * whole
    assert (folder / TENSORS).stat().st_size < 0.5 * whole  # random state and counts of steps
    assert not list(newest(made / "1").glob(PARTS))


def test_a_damaged_part_is_named_and_the_checkpoint_before_it_used(made: Path) -> None:
    said = (made / "damaged.said").read_text()
    assert said.startswith(f"checkpoint step-{HALFWAY:08d} is damaged (shard-00002-")
    assert said.endswith("does not match its checksum); using the one before it")
    assert not (made / "killed-0.said").exists()


@pytest.mark.parametrize(("rank", "left"), [(0, "killed-0-left"), (1, "killed-1")])
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_checkpoint_whole(
    made: Path, rank: int, left: str
) -> None:
    checkpoints = Checkpoints(made / left / "checkpoints")
    assert checkpoints.saved_steps() == [HALFWAY - 1, HALFWAY]
    assert not checkpoints.problem(HALFWAY)
    said = (made / f"killed-{rank}.error{1 - rank}").read_text()
    doing = ("computing with a model", "saving a checkpoint")[rank]
    assert f"another process of this run has ended ({doing} in parts)" in said


def test_a_full_disk_of_one_process_is_told_by_all(made: Path) -> None:
    for rank in (0, 1):
        assert "the disk is full" in (made / f"full.error{rank}").read_text()
    left = {path.name for path in (made / "full/checkpoints").iterdir()}
    assert left == {f"step-{step:08d}" for step in (HALFWAY - 1, HALFWAY)}


def test_processes_that_share_no_folder_are_told(made: Path) -> None:
    for rank in (0, 1):
        said = (made / f"unshared.error{rank}").read_text()
        assert "Give all machines one shared folder" in said
    assert not list((made / "unshared/0").iterdir())


def test_no_process_goes_on_before_all_have_seen_the_parts(made: Path) -> None:
    """Else one that looks after the folder got its name would miss them."""
    assert not list(made.glob("late.error*"))
    assert Checkpoints(made / "late").latest() == 1


def test_a_file_that_is_not_of_the_checkpoint_is_named(made: Path, tmp_path: Path) -> None:
    """The storage reads every file of tensors in the folder."""
    shutil.copytree(made / "2/checkpoints", tmp_path, dirs_exist_ok=True)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    (checkpoints.path(STEPS) / "._shard-00001-model.safetensors").write_bytes(b"of a Mac")
    assert checkpoints.latest() == STEPS - 1
    assert "._shard-00001-model.safetensors is not one of its files: remove it" in said[0]


def test_a_file_of_tensors_that_cannot_be_read_is_damage(made: Path, tmp_path: Path) -> None:
    """Its checksum may fit: a disk can have kept the name and not the content."""
    shutil.copytree(made / "1/checkpoints", tmp_path, dirs_exist_ok=True)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    folder = checkpoints.path(STEPS)
    (folder / TENSORS).write_bytes(b"")
    sums = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps(sums | {TENSORS: sha256_file(folder / TENSORS)}))
    assert checkpoints.latest() == STEPS - 1
    assert "is damaged" in said[0]


def test_no_process_holds_the_whole_state_when_it_saves(made: Path) -> None:
    """Nor its own half once more: a file at a time, here a sixteenth of it, is copied."""
    found = json.loads((made / "memory.json").read_text())
    assert max(found["rises"]) < 0.25 * found["whole"]


def test_a_part_that_no_file_holds_is_found(made: Path, tmp_path: Path) -> None:
    """PyTorch's storage would leave the rest of the tensor as it found the memory."""
    for path in newest(made / "2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    next(iter(tmp_path.glob("shard-00001-*"))).unlink()
    with pytest.raises(ValueError, match=r"a part of .* is missing"):
        read_parts(tmp_path, set())
