"""Outputs of a finished stage are what its record says, or are not used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.files import sha256_file, write_json
from lmsmith.runs import integrity
from lmsmith.runs.integrity import check_folder, check_inputs, is_whole
from lmsmith.runs.records import write_record


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished stage with a model, shards, a card and a chat format."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "run" / "sft"
    names = (
        "model/model.safetensors",
        "model/card.json",
        "model/chat.json",
        "shards/000/tokens.npy",
    )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0123456789")
    write_record(
        folder / "stage.json",
        {"outputs": {name: sha256_file(folder / name) for name in names}},
    )
    return folder


def flip(path: Path) -> None:
    """Turn one bit, and leave size and times as they were."""
    status = path.stat()
    path.write_bytes(b"0123456788")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_whole_files_are_read_once(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_inputs(stage, ["*"])
    check_folder(stage / "model")
    monkeypatch.setattr(integrity, "sha256_file", lambda path: pytest.fail(f"read again: {path}"))
    check_inputs(stage, ["*"])
    check_folder(stage / "model")
    check_folder(stage)


@pytest.mark.parametrize("checked_before", [False, True])
@pytest.mark.parametrize("name", ["model/model.safetensors", "shards/000/tokens.npy"])
def test_a_flipped_bit_is_named(stage: Path, name: str, checked_before: bool) -> None:
    if checked_before:
        check_inputs(stage, ["*"])
    flip(stage / name)
    for check in (lambda: check_inputs(stage, ["*"]), lambda: check_folder((stage / name).parent)):
        with pytest.raises(UserError) as caught:
            check()
        assert str(stage / name) in caught.value.problem
        assert "lmsmith run RECIPE --redo sft" in caught.value.fix
    check_inputs(stage, ["model/card.json"])  # what is not read is not checked


def test_what_people_may_edit_is_let_through(stage: Path) -> None:
    flip(stage / "model/card.json")
    flip(stage / "model/chat.json")
    check_folder(stage / "model")
    with pytest.raises(UserError, match=r"chat\.json: damaged"):
        check_inputs(stage, ["*"])  # a stage's own inputs are those of its fingerprint


def test_a_link_to_the_model_is_followed(stage: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(stage / "model")
    check_folder(tmp_path / "mine")
    flip(stage / "model/model.safetensors")
    with pytest.raises(UserError, match="damaged"):
        check_folder(tmp_path / "mine")


def test_the_command_is_the_run_s_own(stage: Path) -> None:
    words = ["lmsmith", "run", "my recipe.toml", "--set=a.b=1"]
    write_json(stage.parent / "recipe.json", {"recipe": {}, "command": words})
    flip(stage / "model/model.safetensors")
    with pytest.raises(
        UserError, match=r"'my recipe\.toml' --set=a\.b=1 --folder /.*/run --redo sft"
    ):
        check_folder(stage / "model")


def test_a_version_s_damage_says_what_else_there_is(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home" / "versions" / "talk" / "2"
    place.parent.mkdir(parents=True)
    shutil.copytree(stage.parent, place)
    flip(place / "sft/model/model.safetensors")
    with pytest.raises(UserError, match="lmsmith models lineage talk"):
        check_folder(place / "sft/model")


def test_nothing_is_checked_without_a_record(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_inputs(tmp_path, ["*"])
    (tmp_path / "a").symlink_to(tmp_path / "a")
    check_folder(tmp_path / "a" / "model")


def test_a_cache_that_cannot_be_written_costs_only_time(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "file"))
    check_folder(stage / "model")
    check_folder(stage / "model")


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "without its checksum", "link"])
def test_a_damaged_record_does_not_switch_the_checks_off(stage: Path, damage: str) -> None:
    path = stage / "stage.json"
    content = path.read_bytes()
    if damage == "link":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        half = content[: len(content) // 2]
        changes = {
            "flipped": half + bytes([content[len(half)] ^ 1]) + content[len(half) + 1 :],
            "cut": half,
            "empty": b"",
            "without its checksum": content.replace(b"checksum", b"chacksum"),
        }
        path.write_bytes(changes[damage])
    checks = [lambda: check_inputs(stage, ["*"])]
    checks += [lambda: check_folder(stage / "model")] * (damage != "link")
    for check in checks:
        with pytest.raises(UserError) as caught:
            check()
        assert f"{path}: damaged" in caught.value.problem
        assert "lmsmith run RECIPE --redo sft" in caught.value.fix
    assert not is_whole(stage)


def test_a_stage_is_whole_with_all_its_files(stage: Path) -> None:
    assert is_whole(stage)
    (stage / "model/chat.json").unlink()
    assert not is_whole(stage)
    assert not is_whole(stage.parent)
