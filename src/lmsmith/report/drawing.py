"""What the figures share: a line and its running mean, labels, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lmsmith.report.run.records import Row, RunRecord, as_number
from lmsmith.report.run.series import Series, smooth, thin
from lmsmith.report.svg import COLOURS
from lmsmith.runs.metrics_log import read_metrics

_ROUND_STEPS = [1, 2, 2.5, 5, 10]


@dataclass(frozen=True)
class ReportFigure:
    """A picture with the sentence that says what to look for in it."""

    name: str
    title: str
    caption: str
    svg: str


def present(*figures: ReportFigure | None) -> tuple[ReportFigure, ...]:
    return tuple(figure for figure in figures if figure is not None)


def metrics_rows(run: RunRecord, stage: str) -> list[Row]:
    path = run.folder / stage / "metrics.jsonl"
    return read_metrics(path) if path.is_file() else []


def noisy_line(
    axes: Axes, series: Series, colour: str, label: str, *, smoothing: float = 0.05
) -> None:
    """The raw values faint, their running mean strong."""
    if not series:
        return
    thinned, mean = thin(series), thin(smooth(series, smoothing))
    axes.plot(thinned.x, thinned.y, color=colour, linewidth=0.9, alpha=0.3)
    marker = "o" if len(series) == 1 else None
    axes.plot(mean.x, mean.y, color=colour, label=label, marker=marker)


def marked_line(axes: Axes, series: Series, label: str) -> None:
    if series:
        thinned = thin(series, 60)
        axes.plot(
            thinned.x,
            thinned.y,
            color=COLOURS["ink"],
            linewidth=1.1,
            marker="o",
            markersize=3.4,
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=0.6,
            label=label,
        )


def name_ends(axes: Axes, rows: Sequence[dict[str, Any]], series: Series) -> None:
    """Name the first and the last step beside their points."""
    steps = [as_number(row.get("step")) for row in rows]
    for index in {0, len(series) - 1}:
        step = steps[index] if index < len(steps) else None
        if step is not None:
            axes.annotate(
                f"step {step:.0f}",
                (series.x[index], series.y[index]),
                xytext=(0, -11 if index == 0 else 6),
                textcoords="offset points",
                ha="left" if index == 0 else "right",
                fontsize=7.5,
                color=COLOURS["muted"],
            )


def label_axes(axes: Axes, below: str, beside: str) -> None:
    axes.set_xlabel(below)
    if beside:
        axes.set_ylabel(beside)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
    axes.margins(x=0.02)


def share_by_task(axes: Axes, names: Sequence[str]) -> None:
    """A row a task, the first on top, and shares from 0 to 100 % along it."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def legend_above(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=len(handles),
            borderaxespad=0.1,
            handlelength=1.3,
            columnspacing=1.2,
        )


def _short_count(value: float, _: object = None) -> str:
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins of a reliability diagram, as (predicted, observed, share of the largest point)."""

    label: str
    colour: str
    points: Sequence[tuple[float, float, float]]


def draw_reliability(axes: Axes, curves: Sequence[ReliabilityCurve], said: str, true: str) -> None:
    """Predicted against observed frequency (Guo et al. 2017); a larger point has more items."""
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
    for curve in curves:
        predicted, observed, shares = zip(*curve.points, strict=True)
        axes.plot(predicted, observed, color=curve.colour, linewidth=1.2, label=curve.label)
        axes.scatter(
            predicted,
            observed,
            s=[10 + 70 * share for share in shares],
            color=curve.colour,
            edgecolors=COLOURS["paper"],
            linewidths=0.8,
            zorder=3,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(said)
    axes.set_ylabel(true)
