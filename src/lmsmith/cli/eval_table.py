"""The table of ``lmsmith eval``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from lmsmith.evaluation.bootstrap import Interval
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.suite import TaskResult
from lmsmith.evaluation.tasks.spec import Published
from lmsmith.report.numbers import duration, number

NEAREST = 2
"""Figures of papers beside each of ours."""


def results_table(results: Sequence[TaskResult], parameters: int) -> Table:
    """A row a task and number of shots; all measures of it, the headline first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "shots", "items", "measure", "value", "95 % interval"):
        justify = "left" if name in ("task", "measure") else "right"
        table.add_column(name, justify=justify, no_wrap=name != "task")
    table.add_column("papers")
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
                "; ".join(shown_published(row) for row in nearest(result, name, parameters)),
                duration(result.seconds) if first else "",
                style="" if first else "dim",
            )
    return table


def ordered_measures(result: TaskResult) -> list[str]:
    """The headline, then the others."""
    return sorted(result.measures, key=lambda name: name != result.task.measure)


def nearest(result: TaskResult, measure: str, parameters: int) -> list[Published]:
    """Papers' figures of a measure, those of the nearest sizes first."""
    rows = [row for row in result.published if row.measure == measure]
    rows.sort(key=lambda row: abs(math.log(row.parameters / max(parameters, 1))))
    return rows[:NEAREST]


def shown_value(measure: str, value: float) -> str:
    """A share in per cent, anything else as a number."""
    if measure_of(measure).is_share:
        return f"{100 * value:.1f} %"
    return number(value, 4)


def shown_interval(measure: str, interval: Interval) -> str:
    if measure_of(measure).is_share:
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    return f"{number(interval.low, 4)} to {number(interval.high, 4)}"


def shown_published(row: Published) -> str:
    return f"{row.model} {shown_value(row.measure, row.value)}"
