"""PPO's snapshots are found, thinned evenly, and end where PPO did."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmsmith.comparison.replies import final_step, find_snapshots
from lmsmith.core.files import write_json


def test_snapshots_are_thinned_evenly(tmp_path: Path) -> None:
    for step in range(10, 110, 10):
        write_json(tmp_path / "snapshots" / f"step-{step:06d}" / "config.json", {})
    (tmp_path / "snapshots" / "step-000999").mkdir()  # without a model
    assert [step for step, _ in find_snapshots(tmp_path, 5)] == [20, 40, 60, 80, 100]
    assert len(find_snapshots(tmp_path, 99)) == 10
    assert find_snapshots(tmp_path, 0) == find_snapshots(None, 5) == []


@pytest.mark.parametrize(
    ("card", "step"),
    [
        ({"metrics": {"iterations": 9.0}, "settings": {"iterations": 12}}, 9),
        ({"settings": {"iterations": 12}}, 12),
        ({}, 7),
    ],
)
def test_the_end_is_the_cards(tmp_path: Path, card: dict[str, object], step: int) -> None:
    write_json(tmp_path / "model" / "card.json", card)
    assert final_step(tmp_path, 6) == step
