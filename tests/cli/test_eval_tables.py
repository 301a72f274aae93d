"""The tables of a terminal keep their figures whole where it is narrow."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lmsmith.cli.eval import comparison_table
from lmsmith.comparison.run import TaskComparison
from lmsmith.statistics.intervals import Interval


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_comparisons_figures_and_verdicts_are_whole(width: int) -> None:
    rows = [
        TaskComparison(
            task="gpt3_arithmetic/1d_composite 16-shot",
            measure="accuracy_unconditional",
            value_a=0.123,
            value_b=0.234,
            difference=Interval(-0.111, -0.312, 0.456),
            items=200,
            gained=("a",) * 101,
            lost=("b",) * 87,
        ),
        TaskComparison(
            "copa 0-shot", "accuracy", 0.6, 0.7, Interval(0.1, 0.05, 0.15), 9, ("c",), ()
        ),
    ]
    shown = io.StringIO()
    console = Console(width=width, file=shown)
    console.print(comparison_table(rows, "runs/quickstart/sft", "runs/quickstart/ppo"))
    text = (
        shown.getvalue()
        .replace("\N{NO-BREAK SPACE}", " ")
        .replace("\N{NARROW NO-BREAK SPACE}", " ")
    )
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for figure in ("12.3 %", "23.4 %", "−11.10", "−31.20 to +45.60", "101", "87", "unclear"):
        assert figure in text
    for figure in ("60.0 %", "70.0 %", "+10.00", "+5.00 to +15.00", "better"):
        assert figure in text
