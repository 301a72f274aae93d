"""The metrics log: no gap, no repeat, whatever moment it was cut at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.runs.metrics_log import MetricsLog, read_metrics


def steps(path: Path) -> list[float]:
    return [row["step"] for row in read_metrics(path)]


def test_rows_hold_step_seconds_and_values(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "stage" / "metrics.jsonl")
    log.append(1, {"loss": numpy.float32(0.5), "count": 3, "bad": math.nan})
    (row,) = read_metrics(log.path)
    assert (row["step"], row["loss"], row["count"]) == (1, 0.5, 3)
    assert row["seconds"] >= 0
    assert math.isnan(row["bad"])
    assert json.loads(log.path.read_text())["bad"] is None


def test_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
    MetricsLog(tmp_path / "none.jsonl").truncate_after(3)
    assert not (tmp_path / "none.jsonl").exists()


@settings(deadline=None, max_examples=50)  # each waits for the disk
@given(rows=st.integers(1, 6), kept=st.integers(0, 8), lost=st.integers(0, 60))
def test_resume_after_any_cut_has_no_gap_and_no_repeat(
    tmp_path_factory: object, rows: int, kept: int, lost: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"  # type: ignore[attr-defined]
    path.unlink(missing_ok=True)
    log = MetricsLog(path)
    for step in range(1, rows + 1):
        log.append(step, {"loss": 1 / step})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - lost)])
    kept = min(kept, len(steps(path)))
    resumed = MetricsLog(path)
    resumed.truncate_after(kept)
    for step in range(kept + 1, rows + 1):
        resumed.append(step, {"loss": 1 / step})
    assert steps(path) == list(range(1, rows + 1))


def test_append_after_a_torn_line_begins_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 5.0}\n{"step": 2, "sec')
    log = MetricsLog(path)
    log.append(2, {})
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["seconds"] >= 5.0  # the clock goes on, the pause does not count


def test_clock_goes_back_to_the_last_row_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 5.0}\n{"step": 2, "seconds": 900.0}\n')
    log = MetricsLog(path)
    log.truncate_after(1)
    log.append(2, {})
    assert 5.0 <= read_metrics(path)[1]["seconds"] < 100
