"""``lmsmith eval`` and ``lmsmith compare``: the tables they print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from lmsmith import api
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_duration

if TYPE_CHECKING:
    from lmsmith.comparison.run import ModelPair, TaskComparison
    from lmsmith.evaluation.run import ModelEvaluation, TaskResult


def _show(found: ModelEvaluation) -> None:
    if "lm_eval" in found.record:
        record = found.record
        table_console().print(harness_table(record["results"]))
        if record["limit"]:
            print(f"of each task the first {record['limit']} items, as lm-eval takes them")
        print(f"items: {record['folder']}")
        return
    print_tables([found])
    print(f"report: {found.report}")


evaluate = printed(api.evaluate, _show)


def _show_comparison(found: api.ModelComparison) -> None:
    from lmsmith.report.evaluation.comparison import versus_sentences

    print_tables(found.evaluations, found.pairs)
    judged = [pair.versus for pair in found.pairs if pair.versus is not None]
    for versus in judged:
        for sentence in versus_sentences(versus):
            print(f"win rate: {sentence}")
    print(f"report: {found.report}")
    if any(versus.people and versus.people.waiting for versus in judged):
        from lmsmith.cli.feedback import next_step

        print(f"{next_step(found.database)}. Then this command again")


compare = printed(api.compare, _show_comparison)


def print_tables(evaluations: Sequence[ModelEvaluation], pairs: Sequence[ModelPair] = ()) -> None:
    """The last model's values with their intervals, the papers' figures, and what changed.

    Args:
        evaluations: of all models that are compared, or of one.
    """
    from lmsmith.comparison.run import summary
    from lmsmith.report.evaluation.shown import short_names

    console, found = table_console(), evaluations[-1]
    if found.results:
        console.print(results_table(found.results))
    for name, part in {each.task.name: each.part for each in found.results if each.part}.items():
        print(f"items: {name}: {part}; the same for every model")
    for line in paper_lines(found.results, found.record["parameters"]):
        print(f"papers: {line}")
    if any("contamination" in result for result in found.record["results"]):
        print("contamination: the lower of all and clean items is the headline")
        console.print(contamination_table(found.record))
    if len(evaluations) > 2 and found.results:
        console.print(values_table(evaluations))
    for pair in pairs:
        changed = [each for each in pair.comparisons if not each.is_unchanged]
        if changed:
            console.print(comparison_table(changed, pair.before, pair.after))
        if pair.comparisons:
            after, before = short_names([pair.after, pair.before])
            print(f"against {before}, {after} is {summary(pair.comparisons)}")


def results_table(results: Sequence[TaskResult]) -> Table:
    """A row a task and number of shots; all measures of it, the headline first.

    In brackets stands what lm-evaluation-harness calls the same figure.
    """
    from lmsmith.evaluation.measures import LM_EVAL, measure_of
    from lmsmith.report.evaluation.page import ordered_measures
    from lmsmith.report.evaluation.shown import shown_interval, shown_value

    names = ("task", "shots", "items", "measure", "value", "95 % interval", "time")
    table = plain_table(*names, left=("measure",), no_wrap=True)
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
    from lmsmith.evaluation.measures import measure_of
    from lmsmith.report.evaluation.page import ordered_measures
    from lmsmith.report.evaluation.papers import nearest, shown_published

    lines = []
    for result in results:
        ours = f"; ours is of {result.part}" if result.part else ""
        for name in ordered_measures(result):
            shown = [shown_published(row) for row in nearest(result, name, parameters)]
            if shown:
                lines.append(f"{result.name}, {measure_of(name).name}: {'; '.join(shown)}{ours}")
    return lines


def contamination_table(record: Mapping[str, Any]) -> Table:
    """Each score on all items and on those with and without an overlap; its headline."""
    from lmsmith.report.evaluation.shown import contamination_rows

    names = ("task", "rule", "overlap", "all", "clean", "dirty", "headline")
    table = plain_table(*names, left=("rule",))
    for row in contamination_rows(record):
        table.add_row(*(row[name] for name in names))
    return table


def comparison_table(comparisons: Sequence[TaskComparison], a: str, b: str) -> Table:
    """A row a task: both values, their difference with its interval, items won and lost.

    Where the terminal is narrow, the tasks' names are broken and the figures stay whole.
    """
    from lmsmith.evaluation.measures import measure_of
    from lmsmith.report.evaluation.shown import short_names, shown_value
    from lmsmith.report.numbers import signed, signed_interval

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


def values_table(models: Sequence[ModelEvaluation]) -> Table:
    """A row a task, a column a model: the headline measure with its interval."""
    from lmsmith.report.evaluation.comparison import values_of
    from lmsmith.report.evaluation.shown import short_names

    names = short_names([each.name for each in models])
    table = plain_table("task", "measure", *names, left=("measure",))
    for row in values_of(models):
        cells = [f"{value} ({ends})" if ends else value for value, ends in row["cells"]]
        table.add_row(row["task"], row["measure"], *cells)
    return table


def harness_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a measure: lm-eval's value and standard error."""
    names = ("task", "shots", "items", "measure", "value", "standard error", "better")
    table = plain_table(*names, left=("measure", "better"), no_wrap=True)
    words = {True: "higher", False: "lower"}
    for row in rows:
        counts = ("" if n is None else f"{n:,}" for n in (row["shots"], row["items"]))
        first = [row["alias"], *counts]
        for place, each in enumerate(row["measures"]):
            filtered = each["filter"] not in ("none", "")
            table.add_row(
                *(first if place == 0 else [""] * 3),
                f"{each['measure']} ({each['filter']})" if filtered else each["measure"],
                f"{each['value']:,.4f}",
                "" if each["stderr"] is None else f"± {each['stderr']:,.4f}",
                words.get(each["higher_is_better"], ""),
            )
    return table
