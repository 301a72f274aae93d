"""Several models on the same tasks: their values in one table and one drawing, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.comparison.run import ModelPair, TaskComparison, summary
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.run import TaskResult
from lmsmith.report import numbers
from lmsmith.report.drawing import share_by_task
from lmsmith.report.evaluation.shown import NOTHING, short_names, shown_interval, shown_value
from lmsmith.report.evaluation.versus import versus_section
from lmsmith.report.svg import COLOURS, canvas, themed_svg

MODEL_ROLES = ("pretrain", "sft", "ppo", "reward", "human", "judge")
"""Colours of models, in their order; the first again after the last."""

MOST_DRAWN = 24
"""Tasks in the drawing; the table has all."""


@dataclass(frozen=True)
class ModelResults:
    """A model's name and its results."""

    name: str
    results: Sequence[TaskResult]


def pair_section(pair: ModelPair) -> dict[str, Any]:
    """What the page shows of two models."""
    return {
        "before": pair.before,
        "after": pair.after,
        "columns": short_names([pair.before, pair.after]),
        "comparisons": [_comparison(each) for each in pair.comparisons if not each.is_unchanged],
        "summary": summary(pair.comparisons) if pair.comparisons else "",
        "versus": versus_section(pair.versus) if pair.versus is not None else None,
    }


def _comparison(each: TaskComparison) -> dict[str, str]:
    share = measure_of(each.measure).is_share
    difference = each.difference

    scale, decimals = (100, 1) if share else (1, 3)
    return {
        "task": each.task,
        "measure": measure_of(each.measure).name,
        "a": shown_value(each.measure, each.value_a),
        "b": shown_value(each.measure, each.value_b),
        "difference": numbers.signed(scale * difference.value, decimals),
        "interval": numbers.signed_interval(
            scale * difference.low, scale * difference.high, decimals
        ),
        "verdict": each.verdict,
        "changed": f"{len(each.gained)} won, {len(each.lost)} lost" if share else "",
    }


def values_of(models: Sequence[ModelResults]) -> list[dict[str, Any]]:
    """A row a task: the headline measure, and each model's value with its interval."""
    by_model = [{result.name: result for result in each.results} for each in models]
    rows = []
    for name, result in by_model[-1].items():
        measure = result.task.measure
        cells = []
        for found in by_model:
            headline = found[name].headline if name in found else None
            cells.append(
                (NOTHING, "")
                if headline is None
                else (shown_value(measure, headline.value), shown_interval(measure, headline))
            )
        rows.append({"task": name, "measure": measure_of(measure).name, "cells": cells})
    return rows


def side_by_side(models: Sequence[ModelResults]) -> dict[str, Any] | None:
    """Table and drawing of three models or more; two have their difference alone."""
    if len(models) < 3 or not models[-1].results:
        return None
    return {
        "models": short_names([each.name for each in models]),
        "rows": values_of(models),
        "svg": draw_side_by_side(models),
    }


def draw_side_by_side(models: Sequence[ModelResults]) -> str:
    """Each task's share by model, a dot with its interval; empty if no task has a share."""
    shown = [each for each in models[-1].results if measure_of(each.task.measure).is_share]
    shown = shown[:MOST_DRAWN]
    if not shown:
        return ""
    names = short_names([each.name for each in models])
    height = 0.9 + len(shown) * (0.12 + 0.11 * len(models))
    with canvas((7.6, height)) as (figure, (axes,)):
        for place, each in enumerate(models):
            colour = COLOURS[MODEL_ROLES[place % len(MODEL_ROLES)]]
            by_name = {result.name: result.headline for result in each.results}
            offset = (place - (len(models) - 1) / 2) * 0.7 / len(models)
            for row, result in enumerate(shown):
                found = by_name.get(result.name)
                if found is None:
                    continue
                at = row + offset
                axes.plot([found.low, found.high], [at, at], color=colour, linewidth=1.2, alpha=0.6)
                axes.scatter([found.value], [at], s=16, color=colour, zorder=3)
            axes.plot([], [], color=colour, marker="o", markersize=4, label=names[place])
        share_by_task(axes, [each.name for each in shown])
        figure.legend(loc="outside upper left", ncols=3)
        said = f"Each task's value by model: {', '.join(names)}."
        return themed_svg(figure, "side-by-side", said)
