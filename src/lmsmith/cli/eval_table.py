"""What ``lmsmith eval`` prints, and where its page is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from lmsmith.cli.output import print_json
from lmsmith.evaluation.comparing import Comparison, compare_rows
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.suite import TaskResult
from lmsmith.evaluation.versus import Versus
from lmsmith.report.evaluation_page import (
    build_evaluation_page,
    contamination_rows,
    nearest,
    ordered_measures,
    shown_published,
)
from lmsmith.report.numbers import duration, signed
from lmsmith.report.shown import shown_interval, shown_value
from lmsmith.report.versus import versus_sentences

if TYPE_CHECKING:
    from lmsmith.cli.eval_run import Measured


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


def report(
    found: Measured,
    before: Measured | None,
    place: Path,
    json: bool,
    versus: Versus | None = None,
) -> int:
    """Write the page, and print the table or the JSON."""
    comparisons, other = [], ""
    if before is not None:
        other = before.record["model"]
        by_name = {result.name: result for result in before.results}
        for result in found.results:
            rows = by_name[result.name].rows
            name, measure, seed = result.name, result.task.measure, result.setting.seed
            comparisons.append(compare_rows(name, measure, rows, result.rows, seed))
    page = build_evaluation_page(
        place,
        found.record,
        found.results,
        comparisons=comparisons,
        other=other,
        others={result.name: result.rows for result in before.results} if before else {},
        versus=versus,
    )
    if json:
        compared = {"compared_with": other, "comparisons": [c.as_dict() for c in comparisons]}
        print_json(found.record | (compared if other else {}) | {"report": str(page)})
        return 0
    print_tables(found, comparisons, other)
    if versus is not None:
        for sentence in versus_sentences(versus, found.record["model"], other):
            print(f"win rate: {sentence}")
    print(f"report: {page}")
    return 0


def print_tables(found: Measured, comparisons: list[Comparison], other: str) -> None:
    """Each task's value with its interval, beside the papers' figures of the nearest sizes."""
    # A pipe has no width of its own; a table that is cut would say less.
    console = Console(width=None if sys.stdout.isatty() else 120)
    if found.results:
        console.print(results_table(found.results))
    for line in paper_lines(found.results, found.record["parameters"]):
        print(f"papers: {line}")
    if any("contamination" in result for result in found.record["results"]):
        print("contamination: the lower of all and clean items is the headline")
        console.print(contamination_table(found.record))
    if comparisons:
        console.print(comparison_table(comparisons, other, found.record["model"]))
