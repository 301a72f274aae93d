"""The page of ``lmsmith study finetune``: fine-tuning beside prompting, in a curve and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullFormatter, NullLocator

from lmsmith.core.version import VERSION
from lmsmith.report import drawing
from lmsmith.report.drawing import COLOURS, canvas, themed_svg
from lmsmith.report.numbers import machine_words
from lmsmith.report.run.page import write_page
from lmsmith.studies.finetuning import FINETUNED, Point

_WAYS = {"fine-tuned": "fine-tuned", "prompted": "prompted", "rule": "no language model"}
_COLOURS = {"fine-tuned": "sft", "prompted": "ppo", "rule": "muted"}


def build_finetuning_page(
    folder: Path,
    model: str,
    found: Mapping[str, Sequence[Point]],
    command: str,
    hardware: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    tasks = [
        {"name": name, "svg": draw_points(f"curve-{number}", points), "rows": table_rows(points)}
        for number, (name, points) in enumerate(found.items())
    ]
    context = {
        "version": VERSION,
        "model": model,
        "command": command,
        "machine": machine_words(hardware),
        "tasks": tasks,
    }
    return write_page(folder, "finetuning.html.j2", context)


def means(points: Sequence[Point]) -> list[tuple[Point, float, int]]:
    """The points of one way and number of examples as one: (the first, the seeds' mean, seeds)."""
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.way, point.name, point.examples), []).append(point)
    return [
        (group[0], statistics.fmean(each.value for each in group), len(group))
        for group in groups.values()
    ]


def table_rows(points: Sequence[Point]) -> list[tuple[str, str, str, str, str]]:
    """Way, name, examples, the measure, and its interval or the seeds' range."""
    rows = []
    for first, mean, seeds in means(points):
        alike = [p for p in points if (p.way, p.name, p.examples) == _key(first)]
        low, high = first.low, first.high
        note = "95 % interval"
        if seeds > 1:
            low, high = min(p.value for p in alike), max(p.value for p in alike)
            note = f"range of {seeds} seeds"
        ends = f"{100 * low:.1f} to {100 * high:.1f} ({note})"
        shown = f"{100 * mean:.1f} {first.measure}"
        rows.append((_WAYS[first.way], first.name, f"{first.examples:,}", shown, ends))
    return rows


def _key(point: Point) -> tuple[str, str, int]:
    return point.way, point.name, point.examples


def draw_points(name: str, points: Sequence[Point]) -> str:
    """The measure over the number of labelled examples, on a logarithmic axis.

    Fine-tuning is a line with the range of its seeds; a prompt without examples, and a rule with
    all of them, is a dotted line; a prompt with examples is a point.
    """
    curve = [row for row in means(points) if row[0].way == "fine-tuned"]
    line = sorted((row for row in curve if row[0].name == FINETUNED), key=lambda r: r[0].examples)
    with canvas((6.4, 3.2)) as (figure, (axes,)):
        axes.plot(
            [row[0].examples for row in line],
            [row[1] for row in line],
            color=COLOURS["sft"],
            marker="o",
            markersize=3.5,
            label=FINETUNED,
        )
        for place, _, _ in line:
            alike = [p.value for p in points if _key(p) == _key(place)]
            low, high = (place.low, place.high) if len(alike) == 1 else (min(alike), max(alike))
            axes.vlines(place.examples, low, high, color=COLOURS["sft"], linewidth=0.9)
        for first, value, _ in curve:
            if first.name != FINETUNED:
                axes.plot(first.examples, value, color=COLOURS["reward"], marker="s", markersize=4)
                axes.annotate(first.name, (first.examples, value), fontsize=6.5, ha="right")
        edge = max((row[0].examples for row in line), default=8)
        for first, value, _ in means(points):
            if first.way == "prompted" and first.examples:
                axes.plot(first.examples, value, color=COLOURS["ppo"], marker="x", markersize=5)
            elif first.way != "fine-tuned" and (first.way == "prompted" or first.examples == edge):
                colour = COLOURS[_COLOURS[first.way]]
                axes.axhline(value, color=colour, linewidth=0.9, linestyle=drawing.DASHED)
                axes.annotate(
                    f"{first.name} {100 * value:.0f}",
                    (1.0, value),
                    xycoords=("axes fraction", "data"),
                    fontsize=6.5,
                    color=colour,
                )
        axes.set_xscale("log")
        counts = [row[0].examples for row in line]
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="labelled examples", ylabel=points[0].measure)
        return themed_svg(figure, name, f"{points[0].measure} over labelled examples")


def finetuning_record(
    model: str, found: Mapping[str, Sequence[Point]], hardware: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of results.json and ``--json``."""
    return {
        "study": "finetune",
        "version": VERSION,
        "model": model,
        "hardware": dict(hardware),
        "tasks": {name: [each.as_dict() for each in points] for name, points in found.items()},
    }
