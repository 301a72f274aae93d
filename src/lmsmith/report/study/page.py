"""The page of ``lmsmith study``: each task with its figure, its table, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsmith.core.version import VERSION
from lmsmith.evaluation.measures import measure_of
from lmsmith.report import numbers
from lmsmith.report.evaluation.shown import shown_difference, shown_interval, shown_value
from lmsmith.report.run.page import write_page
from lmsmith.report.study.figures import Line, draw_labels, draw_order, draw_shots, draw_sizes
from lmsmith.studies.in_context import ArmResult, StudyKind, TaskStudy, chance, spread

ABOUT: Mapping[StudyKind, str] = {
    "labels": (
        "What a model takes from the labels of its examples: right ones, random ones, random "
        "words, none, renamed ones, and no examples at all (Min et al. 2022; Wei et al. 2023). "
        "Where random labels do as well as right ones, the examples show what is asked and in "
        "which form, not how inputs and labels belong together."
    ),
    "order": (
        "The same examples in several orders (Lu et al. 2021): every point is one order, and the "
        "distance between them is what chance in writing a prompt does."
    ),
    "shots": (
        "The value against the number of examples, and against the size of the model where there "
        "are several (Brown et al. 2020, figure 1.2)."
    ),
}


def study_record(kind: StudyKind, studied: Sequence[TaskStudy]) -> dict[str, Any]:
    """The record of results.json and ``--json``."""
    return {
        "study": kind,
        "version": VERSION,
        "results": [
            {
                "model": each.model,
                "parameters": each.parameters,
                "task": each.task.name,
                "measure": each.task.measure,
                "chance": chance(each.found),
                "arms": [found.as_dict() for found in each.found],
                **({"spread": asdict(spread(each.found))} if kind == "order" else {}),
            }
            for each in studied
        ],
    }


def build_study_page(folder: Path, kind: StudyKind, studied: Sequence[TaskStudy]) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    by_task: dict[str, list[TaskStudy]] = {}
    for each in studied:
        by_task.setdefault(each.task.name, []).append(each)
    tasks = [_task(number, kind, all_of) for number, all_of in enumerate(by_task.values())]
    context = {"kind": kind, "about": ABOUT[kind], "version": VERSION, "tasks": tasks}
    return write_page(folder, "study.html.j2", context)


def _task(number: int, kind: StudyKind, studied: Sequence[TaskStudy]) -> dict[str, Any]:
    task = studied[0].task
    return {
        "spec": task,
        "measure": measure_of(task.measure).name,
        "figures": _figures(f"study-{number}", kind, studied),
        "models": [
            {"study": each, "summary": summary(each), "rows": [_row(found) for found in each.found]}
            for each in studied
        ],
    }


def _row(found: ArmResult) -> dict[str, Any]:
    measure, headline = found.arm.task.measure, found.result.headline
    return {
        "found": found,
        "value": shown_value(measure, headline.value),
        "interval": shown_interval(measure, headline),
        "difference": difference_from_first(found),
    }


def difference_from_first(found: ArmResult) -> str:
    """The difference from the first arm, with the interval of items resampled for both together."""
    compared = found.against_first
    if compared is None:
        return ""
    difference, interval = shown_difference(compared.measure, compared.difference)
    return f"{difference} ({interval})"


def summary(each: TaskStudy) -> list[str]:
    """The table in a sentence or two."""
    task, guessing = each.task, chance(each.found)
    lines = []
    if part := each.found[0].result.part:
        lines.append(f"Asked: {part}, the same for all models and ways.")
    if guessing is not None and measure_of(task.measure).is_share:
        lines.append(f"Guessing gets {numbers.percent(guessing)}.")
    if each.found[0].arm.setting.fixed:
        by_order = spread(each.found)
        low, high = (shown_value(task.measure, v) for v in (by_order.lowest, by_order.highest))
        unsteady = ""
        if by_order.unsteady is not None:
            share = numbers.percent(by_order.unsteady)
            unsteady = f"; {share} of the items are right in some orders and wrong in others"
        lines.append(
            f"From {low} to {high} by the order of the same examples, standard deviation "
            f"{shown_value(task.measure, by_order.deviation)}{unsteady}."
        )
    cut = sum(found.result.truncated > 0 for found in each.found)
    if cut:
        lines.append(f"In {cut} of the rows prompts were longer than the context: its end is kept.")
    return lines


def _figures(name: str, kind: StudyKind, studied: Sequence[TaskStudy]) -> list[str]:
    measure = studied[0].task.measure
    guessing = chance(studied[0].found) if measure_of(measure).is_share else None
    if kind != "shots":
        draw = draw_labels if kind == "labels" else draw_order
        lines = [Line(each.model, each.found, each) for each in studied]
        return [draw(name, lines, measure, guessing)]
    curves = []
    for each in studied:
        for text in dict.fromkeys(found.arm.line for found in each.found):
            of_line = [found for found in each.found if found.arm.line == text]
            label = f"{each.model}, {text}" if text else each.model
            curves.append(Line(label, of_line, each, text))
    drawn = [draw_shots(name, curves, measure, guessing)]
    if len({each.parameters for each in studied}) > 1:
        first = [curve for curve in curves if curve.variant == curves[0].variant]
        drawn.append(draw_sizes(f"{name}-sizes", first, measure, guessing))
    return drawn
