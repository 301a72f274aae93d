"""`run --redo`: a stage and all that depend on it are made again, and nothing is lost before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.recipe import Recipe
from lmsmith.runs.integrity import check_folder
from lmsmith.runs.redo import REDO_FILE
from lmsmith.stages import pipeline
from lmsmith.stages.pipeline import run_recipe

sys.path.insert(0, str(Path(__file__).parent))

import tiny_stages as tiny


@pytest.fixture(autouse=True)
def peak_memory_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "reset_peak_memory", lambda: False)


def go(folder: Path, settings: dict[str, dict[str, Any]] | None = None, **options: Any) -> Any:
    tables = {name: {} for name in ("make", "grow", "measure")} | (settings or {})
    stages: dict[str, object] = {name: tiny.TinyConfig(**table) for name, table in tables.items()}
    recipe = Recipe("tiny", "", 1, stages=stages, words=("tiny recipe", "--set=make.rate=1"))
    options = {"stages": tiny.STAGES, "prepare": tiny.prepare, **options}
    found = run_recipe(recipe, folder, **options)["stages"]
    assert isinstance(found, dict)
    return {name: entry["action"] for name, entry in found.items()}


def flip(path: Path) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_stage_and_all_that_depend_on_it_are_made_again(tmp_path: Path) -> None:
    go(tmp_path)
    assert set(go(tmp_path).values()) == {"skip"}
    again = go(tmp_path, redo="grow", dry_run=True)
    assert again == {"make": "skip", "grow": "run", "measure": "run"}
    assert not (tmp_path / REDO_FILE).exists()
    assert go(tmp_path, redo="grow") == again
    assert not (tmp_path / REDO_FILE).exists()
    assert set(go(tmp_path).values()) == {"skip"}


def test_a_flipped_bit_is_named_with_the_command_that_mends_it(tmp_path: Path) -> None:
    go(tmp_path)
    flip(tmp_path / "make" / "link.txt")
    with pytest.raises(UserError) as caught:
        go(tmp_path, {"grow": {"rate": 3.0}})
    command = f"lmsmith run 'tiny recipe' --set=make.rate=1 --folder {tmp_path} --redo make"
    assert f"{tmp_path}/make/link.txt: damaged" in str(caught.value)
    assert command in str(caught.value)
    assert (tmp_path / "grow" / "link.txt").is_file()  # what is there stays
    assert set(go(tmp_path, redo="make").values()) == {"run"}
    go(tmp_path, {"grow": {"rate": 3.0}})


def test_what_was_made_stays_until_the_new_one_is_done(tmp_path: Path) -> None:
    go(tmp_path)
    before = (tmp_path / "grow" / "stage.json").read_bytes()
    with pytest.raises(RuntimeError):
        _failing(tmp_path)
    assert (tmp_path / "grow" / "stage.json").read_bytes() == before
    left = json.loads((tmp_path / REDO_FILE).read_text())
    assert left == {"asked": ["grow"], "left": ["grow", "measure"]}
    again = {"make": "skip", "grow": "continue", "measure": "run"}
    assert go(tmp_path) == again  # without --redo too: it was asked for and is not done
    assert set(go(tmp_path).values()) == {"skip"}


def _failing(folder: Path) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "run", broken)
        go(folder, redo="grow")


def test_the_same_command_goes_on_after_an_interruption(tmp_path: Path) -> None:
    go(tmp_path)
    real, calls = tiny.run, []

    def stopped(config: Any, inputs: Any, out: Any) -> dict[str, float]:
        calls.append(out.name)
        if out.name == "measure":
            raise Interrupted(15)
        return real(config, inputs, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "run", stopped)
        with pytest.raises(Interrupted):
            go(tmp_path, redo="make")
    assert calls == ["make", "grow", "measure"]
    done = go(tmp_path, redo="make")
    assert (done["make"], done["grow"], done["measure"]) == ("skip", "skip", "continue")
    assert not (tmp_path / REDO_FILE).exists()


@pytest.mark.parametrize("options", [{"redo": "absent"}, {"redo": "make", "only": "make"}])
def test_what_cannot_be_made_again_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--redo"):
        go(tmp_path, **options)


def stopped_at(folder: Path, stage: str, redo: str) -> None:
    """A command that was stopped as this stage began."""
    real = tiny.run

    def stopped(config: Any, inputs: Any, out: Any) -> dict[str, float]:
        if out.name == stage:
            raise Interrupted(15)
        return real(config, inputs, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "run", stopped)
        with pytest.raises(Interrupted):
            go(folder, redo=redo)


@pytest.mark.parametrize("damage", ["output", "missing", "record"])
def test_a_stage_that_was_made_again_and_is_damaged_is_made_once_more(
    tmp_path: Path, damage: str
) -> None:
    go(tmp_path)
    stopped_at(tmp_path, "measure", "make")
    if damage == "missing":
        (tmp_path / "make" / "link.txt").unlink()
    else:
        flip(tmp_path / "make" / {"output": "link.txt", "record": "stage.json"}[damage])
    again = go(tmp_path, redo="make", dry_run=True)
    assert again["make"] == "run"
    assert again["grow"] in ("run", "depends")
    assert go(tmp_path, redo="make")["make"] == "run"
    assert not (tmp_path / REDO_FILE).exists()
    assert set(go(tmp_path).values()) == {"skip"}


def test_another_stage_that_was_made_again_is_made_once_more(tmp_path: Path) -> None:
    go(tmp_path)
    stopped_at(tmp_path, "measure", "make")
    stopped_at(tmp_path, "measure", "grow")
    assert go(tmp_path, redo="make", dry_run=True)["make"] == "run"
    done = go(tmp_path, redo="make")
    assert (done["make"], done["grow"]) == ("run", "run")
    assert not (tmp_path / REDO_FILE).exists()


def test_a_stage_that_left_the_recipe_is_not_waited_for(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / REDO_FILE).write_text('{"asked": ["gone"], "left": ["gone"]}')
    assert set(go(tmp_path).values()) == {"skip"}
    assert not (tmp_path / REDO_FILE).exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"asked": 3, "left": {}}', '{"left": [1, "grow"]}', '{"asked": ["grow"]}'],
)
@pytest.mark.parametrize("redo", [None, "grow"])
def test_a_damaged_list_is_an_error_that_says_what_to_do(
    tmp_path: Path, content: str, redo: str | None
) -> None:
    go(tmp_path)
    (tmp_path / REDO_FILE).write_text(content)
    for dry in (True, False):
        with pytest.raises(UserError) as caught:
            go(tmp_path, redo=redo, dry_run=dry)
        assert f"{tmp_path / REDO_FILE}: damaged" in caught.value.problem
        assert "remove it" in caught.value.fix
        assert "--redo STAGE" in caught.value.fix
    (tmp_path / REDO_FILE).unlink()
    assert go(tmp_path, redo="grow")["grow"] == "run"


def test_a_damaged_record_is_made_again_by_redo(tmp_path: Path) -> None:
    go(tmp_path)
    flip(tmp_path / "make" / "stage.json")
    with pytest.raises(UserError) as caught:
        check_folder(tmp_path / "make")
    assert f"{tmp_path / 'make' / 'stage.json'}: damaged" in caught.value.problem
    assert "--redo make" in caught.value.fix
    assert go(tmp_path, redo="make")["make"] == "run"
    check_folder(tmp_path / "make")
