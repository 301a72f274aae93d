"""The table of ``lmsmith eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from lmsmith.evaluation.comparing import Comparison
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.suite import TaskResult
from lmsmith.report.evaluation_page import (
    contamination_rows,
    nearest,
    ordered_measures,
    shown_published,
)
from lmsmith.report.numbers import duration, signed
from lmsmith.report.shown import shown_interval, shown_value


def results_table(results: Sequence[TaskResult]) -> Table:
    """A row a task and number of shots; all measures of it, the headline first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "shots", "items", "measure", "value", "95 % interval"):
        on_left = name in ("task", "measure")
        table.add_column(name, justify="left" if on_left else "right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for result in results:
        for place, name in enumerate(ordered_measures(result)):
            first = place == 0
            interval = result.measures[name]
            table.add_row(
                result.task.name if first else "",
                result.setting.label if first else "",
                f"{result.items:,}" if first else "",
                measure_of(name).name,
                shown_value(name, interval.value),
                shown_interval(name, interval),
                duration(result.seconds) if first else "",
                style="" if first else "dim",
            )
    return table


def paper_lines(results: Sequence[TaskResult], parameters: int) -> list[str]:
    """Papers' figures of the same tasks and measures, those of the nearest sizes."""
    lines = []
    for result in results:
        for name in ordered_measures(result):
            shown = [shown_published(row) for row in nearest(result, name, parameters)]
            if shown:
                lines.append(f"{result.name}, {measure_of(name).name}: {'; '.join(shown)}")
    return lines


def contamination_table(record: Mapping[str, Any]) -> Table:
    """Each score on all items and on those with and without an overlap; its headline."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "rule", "overlap", "all", "clean", "dirty", "headline"):
        table.add_column(name, justify="left" if name in ("task", "rule") else "right")
    for row in contamination_rows(record):
        parts = [row[part] for part in ("all", "clean", "dirty")]
        table.add_row(row["task"], row["rule"], row["overlap"], *parts, row["headline"])
    return table


def comparison_table(comparisons: Sequence[Comparison], a: str, b: str) -> Table:
    """A row a task: both values, their difference with its interval, items won and lost."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "measure", a, b, "difference", "95 % interval", "won", "lost", ""):
        table.add_column(name, justify="left" if name in ("task", "measure", "") else "right")
    for each in comparisons:
        share = measure_of(each.measure).is_share
        scale = 100.0 if share else 1.0
        ends = each.difference
        table.add_row(
            each.task,
            measure_of(each.measure).name,
            shown_value(each.measure, each.value_a),
            shown_value(each.measure, each.value_b),
            signed(scale * ends.value),
            f"{signed(scale * ends.low)} to {signed(scale * ends.high)}",
            str(len(each.gained)) if share else "",
            str(len(each.lost)) if share else "",
            each.verdict,
        )
    return table
