"""The page of a version: its gates against their margins, its people, its answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.catalogue.versions import Gate, Learnt, Version
from lmsmith.report.version.figures import distance_of, draw_gates
from lmsmith.report.version.page import build_version_page

GATES = (
    Gate("win_rate", "passed", 0.6, 0.52, 0.68, 0.5, "by the judge"),
    Gate("kl", "failed", 40.0, 35.0, 45.0, 30.0, "nats"),
    Gate("length", "failed", 0.5, 0.4, 0.6, 1.5, "half as long"),
    Gate("tasks", "not shown", reason="gates.tasks names <none>"),
)
MADE = Version(
    "ours",
    2,
    "ppo/model",
    "a" * 64,
    "round",
    "2026-11-29T10:00:00+00:00",
    (1,),
    Learnt("b" * 64, {"reward/train": 1200, "prompts": 0}, ("ann", "bob"), "2026"),
    "refused",
    GATES,
    {"ppo.kl": 40.0},
)


def test_right_of_the_margin_is_good_for_every_gate() -> None:
    for gate in GATES[:3]:
        found = distance_of(gate)
        assert found is not None
        assert (found.value > 0) == (gate.state == "passed")
        assert found.low <= found.value <= found.high
    assert distance_of(GATES[3]) is None
    assert distance_of(replace(GATES[0], value=math.nan)) is None
    length = distance_of(replace(GATES[2], value=1.0, low=0.8, high=1.2))
    assert length is not None
    assert length.high == pytest.approx(math.log(1.5))
    assert length.low == pytest.approx(math.log(1.5) - math.log(1 / 0.8))
    assert draw_gates(GATES[3:]) is None


def test_the_page_shows_gates_people_and_answers(tmp_path: Path) -> None:
    (tmp_path / "gates").mkdir()
    row = {
        "id": "1",
        "prompt": [{"role": "user", "content": "A <b>bold</b> question"}],
        "human": "",
        "responses": {"candidate": "New & good", "current": " "},
    }
    (tmp_path / "gates/samples.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/snapshot.json").write_text('{"left_out": {"said twice by one person": 3}}')
    page = build_version_page(MADE, tmp_path).read_text()
    for text in (
        "refused.",
        "Failed: KL from the current version, Length against the current version.",
        "2 people judged or asked.",
        "1,200",
        "A &lt;b&gt;bold&lt;/b&gt; question",
        "New &amp; good",
        '<p class="nothing">no text</p>',
        "gates.tasks names &lt;none&gt;; name some by --set gates.tasks=&#39;[&#34;arithmetic",
        "low end above 0.500",
        "0.667 to 1.50",
        "3 said twice by one person",
        'aria-label="Interval chart',
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    assert build_version_page(MADE, tmp_path).read_text() == page


def test_a_first_version_has_a_page_too(tmp_path: Path) -> None:
    first = Version("ours", 1, "model", "a" * 64, "runs/quickstart", "2026", verdict="first")
    page = build_version_page(first, tmp_path).read_text()
    assert "there is nothing to compare it with" in page
    assert "From runs/quickstart" in page
