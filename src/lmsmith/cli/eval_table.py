"""What ``lmsmith eval`` prints, and where its page is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from lmsmith.cli.output import print_json, table_console
from lmsmith.comparison.items import Comparison, compare_rows, summary
from lmsmith.comparison.versus import Versus
from lmsmith.core.format import format_duration
from lmsmith.evaluation.evaluator import TaskResult
from lmsmith.evaluation.measures import LM_EVAL, measure_of
from lmsmith.report.evaluation.page import (
    build_evaluation_page,
    contamination_rows,
    ordered_measures,
)
from lmsmith.report.evaluation.papers import nearest, shown_published
from lmsmith.report.evaluation.shown import short_names, shown_interval, shown_value
from lmsmith.report.evaluation.side_by_side import ModelResults, Pair, values_of
from lmsmith.report.evaluation.versus import versus_sentences
from lmsmith.report.numbers import signed, signed_interval

if TYPE_CHECKING:
    from lmsmith.cli.eval_run import Measured


def results_table(results: Sequence[TaskResult]) -> Table:
    """A row a task and number of shots; all measures of it, the headline first.

    In brackets stands what lm-evaluation-harness calls the same figure.
    """
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
                measure_of(name).name + (f" ({LM_EVAL[name]})" if name in LM_EVAL else ""),
                shown_value(name, interval.value),
                shown_interval(name, interval),
                format_duration(result.seconds) if first else "",
                style="" if first else "dim",
            )
    return table


def paper_lines(results: Sequence[TaskResult], parameters: int) -> list[str]:
    """Papers' figures of the same tasks and measures, those of the nearest sizes."""
    lines = []
    for result in results:
        ours = f"; ours is of {result.part}" if result.part else ""
        for name in ordered_measures(result):
            shown = [shown_published(row) for row in nearest(result, name, parameters)]
            if shown:
                lines.append(f"{result.name}, {measure_of(name).name}: {'; '.join(shown)}{ours}")
    return lines


def drawn_lines(results: Sequence[TaskResult]) -> list[str]:
    """Which items tasks were asked, where they were not asked all."""
    parts = {result.task.name: result.part for result in results if result.part}
    return [f"{name}: {part}; the same for every model" for name, part in parts.items()]


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
    """A row a task: both values, their difference with its interval, items won and lost.

    Where the terminal is narrow, the tasks' names are broken and the figures stay whole.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("task, measure", min_width=13, overflow="fold")
    for name in (*short_names([a, b]), "change", "95 % interval", "won", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in comparisons:
        share = measure_of(each.measure).is_share
        scale = 100.0 if share else 1.0
        ends = each.difference
        table.add_row(
            f"{each.task}, {measure_of(each.measure).name}",
            shown_value(each.measure, each.value_a),
            shown_value(each.measure, each.value_b),
            signed(scale * ends.value),
            signed_interval(scale * ends.low, scale * ends.high),
            str(len(each.gained)) if share else "",
            str(len(each.lost)) if share else "",
            each.verdict,
        )
    return table


def values_table(models: Sequence[ModelResults]) -> Table:
    """A row a task, a column a model: the headline measure with its interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "measure"):
        table.add_column(name)
    for name in short_names([each.name for each in models]):
        table.add_column(name, justify="right")
    for row in values_of(models):
        cells = [f"{value} ({ends})" if ends else value for value, ends in row["cells"]]
        table.add_row(row["task"], row["measure"], *cells)
    return table


def compared_measures(result: TaskResult) -> list[str]:
    """The headline, and of whole words their perplexity: it moves where none is right."""
    measures = [result.task.measure]
    if "perplexity" in result.measures:
        measures.append("perplexity")
    return list(dict.fromkeys(measures))


def compared(pairs: Sequence[tuple[Measured, Measured]], versus: Sequence[Versus]) -> list[Pair]:
    """What each second model gained over the first, by tasks and, if asked, by replies."""
    found = []
    for place, (before, after) in enumerate(pairs):
        by_name = {result.name: result for result in before.results}
        comparisons = [
            compare_rows(
                result.name, measure, by_name[result.name].rows, result.rows, result.setting.seed
            )
            for result in after.results
            for measure in compared_measures(result)
        ]
        judged = versus[place] if versus else None
        found.append(Pair(before.name, after.name, comparisons, judged))
    return found


def report(measured: Sequence[Measured], pairs: Sequence[Pair], *, json: bool) -> None:
    """Write the page of the last model, and print the tables or the JSON."""
    found = measured[-1]
    models = [ModelResults(each.name, each.results) for each in measured]
    page = build_evaluation_page(
        found.folder, found.record, found.results, others=models[:-1], pairs=pairs
    )
    if json:
        shown: dict[str, Any] = {}
        if pairs:
            shown["beside"] = [each.record for each in measured[:-1]]
            shown["comparisons"] = [
                {"model": pair.after, "against": pair.before, **each.as_dict()}
                for pair in pairs
                for each in pair.comparisons
            ]
        print_json(found.record | shown | {"report": str(page)})
        return
    print_tables(found, models, pairs)
    for pair in pairs:
        for sentence in versus_sentences(pair.versus) if pair.versus is not None else ():
            print(f"win rate: {sentence}")
    print(f"report: {page}")


def print_tables(found: Measured, models: Sequence[ModelResults], pairs: Sequence[Pair]) -> None:
    """Each task's value with its interval, beside the papers' figures of the nearest sizes."""
    console = table_console()
    if found.results:
        console.print(results_table(found.results))
    for line in drawn_lines(found.results):
        print(f"items: {line}")
    for line in paper_lines(found.results, found.record["parameters"]):
        print(f"papers: {line}")
    if any("contamination" in result for result in found.record["results"]):
        print("contamination: the lower of all and clean items is the headline")
        console.print(contamination_table(found.record))
    if len(models) > 2 and found.results:
        console.print(values_table(models))
    for pair in pairs:
        changed = [each for each in pair.comparisons if not each.is_unchanged]
        if changed:
            console.print(comparison_table(changed, pair.before, pair.after))
        if pair.comparisons:
            after, before = short_names([pair.after, pair.before])
            print(f"against {before}, {after} is {summary(pair.comparisons)}")
