"""A stage's warnings and times are on disk while it runs."""

from __future__ import annotations

from pathlib import Path

from lmsmith.core.progress import QuietProgress
from lmsmith.runs.records import read_record
from lmsmith.runs.watching import WatchedProgress


def test_a_warning_outlives_a_kill_right_after_it(tmp_path: Path) -> None:
    path = tmp_path / "started.json"
    watched = WatchedProgress(
        QuietProgress(), path, {"stage": "x"}, seconds_before=2.0, peak_before=0, warnings=[]
    )
    watched.say("odd")
    watched.say("odd")
    record = read_record(path)
    assert record is not None
    assert record["warnings"] == ["odd"]
    assert record["wall_seconds"] >= 2.0
