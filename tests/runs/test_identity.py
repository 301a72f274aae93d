"""A stage is what decides its outputs: what counts, and how a difference is said."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.runs import identity as identity_module
from lmsmith.runs.identity import Identity, differences, external_files, file_states, files_read

IDENTITY = Identity(
    stage="grow",
    format=1,
    settings={"rate": 0.02, "optimiser": {"name": "muon"}, "sources": [{"weight": 1}]},
    seed=1,
    precision="auto",
    inputs={"base": {"stage": "make", "files": {"link.txt": "aa", "other.txt": "ab"}}},
    files={"a.txt": {"sha256": "00", "bytes": 1, "modified_ns": 1}},
)
RECORD: dict[str, Any] = IDENTITY.as_dict()


def test_the_same_identity_has_no_differences() -> None:
    assert differences(RECORD, IDENTITY) == []
    assert differences(RECORD | {"fingerprint": "?"}, IDENTITY) == ["its fingerprint changed"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(IDENTITY, format=2), ["this version of lmsmith makes grow differently"]),
        (replace(IDENTITY, seed=2), ["seed changed 1 → 2"]),
        (replace(IDENTITY, precision="fp32"), ["precision changed auto → fp32"]),
        (
            replace(IDENTITY, settings={"rate": 0.1, "steps": 3, "sources": [{"weight": 2}]}),
            [
                "rate changed 0.02 → 0.1",
                "steps is new: 3",
                "sources.0.weight changed 1 → 2",
                "optimiser.name is gone",
            ],
        ),
        (replace(IDENTITY, inputs={}), ["its input make is gone"]),
        (
            replace(
                IDENTITY,
                inputs={
                    "base": {"stage": "make", "files": {"link.txt": "bb", "other.txt": "ab"}},
                    "other": {"stage": "side", "files": {}},
                },
            ),
            ["its input make changed (link.txt)", "its input side is new"],
        ),
        (
            replace(IDENTITY, files={"a.txt": {"sha256": "11"}, "b.txt": {"sha256": "22"}}),
            ["the file a.txt changed", "the file b.txt is new"],
        ),
    ],
)
def test_every_difference_is_said(changed: Identity, said: list[str]) -> None:
    assert sorted(differences(RECORD, changed)) == sorted(said)


def test_what_an_unmade_input_will_hold_is_no_difference() -> None:
    pending = replace(IDENTITY, inputs={"base": {"stage": "make", "files": None}})
    assert pending.pending == ["make"]
    assert differences(RECORD, pending) == []
    assert differences(RECORD, replace(pending, seed=2)) == ["seed changed 1 → 2"]


def test_a_record_that_names_no_files_is_of_an_earlier_version() -> None:
    old = RECORD | {"fingerprint": "?", "inputs": {"base": {"stage": "make", "fingerprint": "a"}}}
    said = ["this version of lmsmith compares the files that a stage reads"]
    assert differences(old, IDENTITY) == said


def test_only_the_files_that_a_stage_reads_count() -> None:
    outputs = {"model/config.json": "a", "model/card.json": "b", "samples.jsonl": "c"}
    assert files_read(outputs, ("model/*", "none.txt")) == {"model/config.json": "a"}
    assert files_read(outputs, ("*",)) == {"model/config.json": "a", "samples.jsonl": "c"}


def test_files_that_moved_are_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    identities = []
    for name in ("a.txt", "b.txt"):
        path = tmp_path / name
        path.write_text("one")
        states = file_states(path, {})
        identities.append(Identity("data", 1, {}, 1, "auto", {}, states))
    assert identities[0].fingerprint == identities[1].fingerprint


def test_folder_of_files_counts_every_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    first = file_states(tmp_path, {})
    (tmp_path / "b.txt").write_text("b")
    second = file_states(tmp_path, first)
    assert [Path(name).name for name in second] == ["a.txt", "b.txt"]


def test_a_file_is_hashed_again_only_if_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = file_states(path, {})
    with monkeypatch.context() as patch:
        patch.delattr(identity_module, "sha256_file")
        assert file_states(path, first) == first
    os.utime(path, ns=(1, 1))
    assert file_states(path, first)[str(path)]["sha256"] == first[str(path)]["sha256"]


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    class Settings:
        def external_files(self) -> list[str]:
            return [str(tmp_path / "here.txt"), str(tmp_path / "a"), str(tmp_path / "b")]

    (tmp_path / "here.txt").write_text("x")
    states, problems = external_files("data", Settings(), tmp_path / "run")
    assert list(states) == [str(tmp_path / "here.txt")]
    assert [problem.value for problem in problems] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert external_files("data", object(), tmp_path) == ({}, [])
    with pytest.raises(UserError, match="no such file"):
        file_states(tmp_path / "a", {})
