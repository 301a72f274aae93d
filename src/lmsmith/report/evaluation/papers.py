"""Our figures in the rows of the papers' tables, and drawn among the papers' models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmsmith.core.format import UNKNOWN
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.run import TaskResult
from lmsmith.evaluation.tasks.spec import Published
from lmsmith.report.drawing import COLOURS, canvas, legend_marker, share_by_task, themed_svg
from lmsmith.report.evaluation.shown import shown_interval, shown_value

OURS, THEIRS = "ppo", ("muted", "base", "reward", "judge", "sft")
"""Roles of colours: the model's that was measured, and the papers' families'."""

NEAREST = 2
"""Figures of papers in a line of text."""

SMALLEST, LARGEST = 1e7, 1e12
"""Parameters of the smallest and the largest dot."""


def nearest(result: TaskResult, measure: str, parameters: int) -> list[Published]:
    """The papers' figures of a measure with the nearest sizes, the nearest first."""
    rows = [row for row in result.published if row.measure == measure]
    return sorted(rows, key=lambda row: _apart(row.parameters, parameters))[:NEAREST]


def _apart(theirs: float, ours: int) -> float:
    """Distance of two sizes, by their ratio."""
    return abs(math.log(theirs / max(ours, 1)))


def shown_published(row: Published) -> str:
    """A paper's figure, with its model and source."""
    return f"{row.model} {_printed(row)} ({row.paper})"


def _printed(row: Published) -> str:
    """A paper's figure with no more digits than it has."""
    share = measure_of(row.measure).is_share
    return shown_value(row.measure, row.value) if share else f"{row.value:g}"


def papers_section(
    results: Sequence[TaskResult], model: str, parameters: int
) -> dict[str, Any] | None:
    """A model's results among those of papers; None where no paper has a figure.

    Args:
        parameters: of the model; the nearest size among the papers' is marked.

    Returns:
        The model, a drawing (empty if there is no share), and a table for each family of models.
    """
    tables = [_table(results, family, parameters) for family in _families(results)]
    if not tables:
        return None
    return {"model": model, "svg": draw_among_papers(results, model), "tables": tables}


def draw_among_papers(results: Sequence[TaskResult], model: str) -> str:
    """Headline shares, ours with its interval among the papers', whose dots grow with the size.

    Empty where there is none.
    """
    drawn = [
        result
        for result in results
        if measure_of(result.task.measure).is_share and _headline_rows(result)
    ]
    if not drawn:
        return ""
    families: dict[str, list[tuple[float, int, float]]] = {}
    for at, result in enumerate(drawn):
        for row in _headline_rows(result):
            point = (row.value, at, _area(row.parameters))
            families.setdefault(_family(row), []).append(point)
    with canvas((7.6, 0.9 + 0.2 * len(drawn))) as (figure, (axes,)):
        for place, (family, points) in enumerate(families.items()):
            values, heights, areas = zip(*points, strict=True)
            colour = COLOURS[THEIRS[place % len(THEIRS)]]
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colour}
            axes.scatter(values, heights, s=areas, linewidths=0.8, **ring)
            axes.scatter([], [], s=18, label=family, **ring)
        for at, result in enumerate(drawn):
            ours = result.headline
            axes.plot([ours.low, ours.high], [at, at], color=COLOURS[OURS], linewidth=1.4)
            axes.scatter([ours.value], [at], s=18, color=COLOURS[OURS], zorder=3)
        legend_marker(axes, COLOURS[OURS], model)
        share_by_task(axes, [each.name for each in drawn])
        figure.legend(loc="outside upper left", ncols=4)
        said = f"{model} on each task among {', '.join(families)}, whose dots grow with their size."
        return themed_svg(figure, "among-papers", said)


def _area(parameters: float) -> float:
    """Points² of a dot."""
    share = math.log(parameters / SMALLEST) / math.log(LARGEST / SMALLEST)
    return 4 + 56 * min(max(share, 0.0), 1.0) ** 2


def _headline_rows(result: TaskResult) -> list[Published]:
    return [row for row in result.published if row.measure == result.task.measure]


def _families(results: Sequence[TaskResult]) -> list[str]:
    """The papers' families of models, by their number of figures."""
    rows = [row for each in results for row in each.published if row.measure in each.measures]
    return [family for family, _ in Counter(_family(row) for row in rows).most_common()]


def _family(row: Published) -> str:
    return row.model.split()[0]


def _table(results: Sequence[TaskResult], family: str, parameters: int) -> dict[str, Any]:
    sizes: dict[str, float] = {}
    rows = []
    for result in results:
        for measure, ours in result.measures.items():
            theirs = {
                row.model: row
                for row in result.published
                if row.measure == measure and _family(row) == family
            }
            if theirs:
                sizes |= {name: row.parameters for name, row in theirs.items()}
                rows.append((result, measure, ours, theirs))
    names = sorted(sizes, key=lambda name: sizes[name])
    near = min(names, key=lambda name: _apart(sizes[name], parameters))
    return {
        "family": family,
        "columns": [(name.removeprefix(family).strip() or name, name == near) for name in names],
        "rows": [
            {
                "task": result.name,
                "measure": measure_of(measure).name,
                "ours": shown_value(measure, ours.value),
                "interval": shown_interval(measure, ours),
                "part": result.part,
                "cells": [_printed(theirs[name]) if name in theirs else UNKNOWN for name in names],
                "source": next(iter(theirs.values())).paper.removeprefix(f"{family}, "),
            }
            for result, measure, ours, theirs in rows
        ],
    }
