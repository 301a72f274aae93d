"""A record is read as it was written, or not at all."""

from __future__ import annotations

import json
import random
from pathlib import Path

from lmsmith.core.progress import QuietProgress
from lmsmith.runs.records import (
    WatchedProgress,
    read_record,
    recorded_outputs,
    recorded_seconds,
    write_record,
)

RECORD: dict[str, object] = {
    "status": "done",
    "settings": {"rate": 0.02, "files": ["a", "b"], "name": "é"},
    "metrics": {"loss": 1 / 3, "unknown": float("nan")},
    "outputs": {"link.txt": "0" * 64},
    "wall_seconds": 1.25,
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_record(tmp_path / "stage.json", RECORD)
    read = read_record(tmp_path / "stage.json")
    assert read is not None
    assert {name: read[name] for name in RECORD} == {
        **RECORD,
        "metrics": {"loss": 1 / 3, "unknown": None},
    }
    assert recorded_seconds(read) == 1.25
    write_record(tmp_path / "stage.json", read)  # what was read can be written again
    assert read_record(tmp_path / "stage.json") == read


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    chance = random.Random(0)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            same = json.loads(bytes(flipped)) == json.loads(whole)  # a space for a newline
        except ValueError:
            same = False
        assert (read_record(path) is not None) == same, place
        path.write_bytes(whole[:place])
        assert (read_record(path) is not None) == (place == len(whole) - 1), place


def test_nothing_written_is_nothing(tmp_path: Path) -> None:
    assert read_record(tmp_path / "stage.json") is None
    assert recorded_seconds(None) == 0.0
    assert recorded_outputs(tmp_path) == {}


def test_outputs_are_those_of_the_record(tmp_path: Path) -> None:
    write_record(tmp_path / "stage.json", {**RECORD, "outputs": {"link.txt": "1" * 64}})
    assert recorded_outputs(tmp_path) == {"link.txt": "1" * 64}


def test_a_warning_outlives_a_kill_right_after_it(tmp_path: Path) -> None:
    path = tmp_path / "started.json"
    watched = WatchedProgress(QuietProgress(), path, {"stage": "x"}, {"wall_seconds": 2.0})
    watched.say("odd")
    watched.say("odd")
    record = read_record(path)
    assert record is not None
    assert record["warnings"] == ["odd"]
    assert record["wall_seconds"] >= 2.0
