"""Figures as SVG: a page's colours, lines of a metrics log, axes and legends."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lmsmith.report.numbers import as_number

# matplotlib wants colours it can parse, the page wants CSS variables: each role is drawn in a
# colour that nothing else has, and `themed_svg` writes `var(--role)` in its place.
_STAGES = ("pretrain", "base", "sft", "reward", "ppo", "judge", "human", "distil")
COLOURS: dict[str, str] = {
    role: f"#0102{index:02x}"
    for index, role in enumerate(("ink", "muted", "line", "paper", *_STAGES), start=16)
}
"""A stand-in colour by role; only `themed_svg` knows what becomes of it."""

WIDE = (4.3, 2.6)
SMALL = (3.2, 2.05)
"""Inches; the page stretches a figure to its column, so these set how large its text is."""

DASHED = (0, (3, 2))
REFERENCE: dict[str, Any] = {
    "color": COLOURS["muted"],
    "linewidth": 1,
    "linestyle": (0, (2, 2)),
}
"""Style of a dotted line to compare with: a bound, a coin, guessing."""

MOST_POINTS = 400
"""A line of more points than this looks the same and only makes the page heavier."""

_ROUND_STEPS = [1, 2, 2.5, 5, 10]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lmsmith",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # models' and tasks' names may hold a $
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.labelsize": 8.0,
    "ytick.major.size": 0.0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@contextmanager
def canvas(
    size: tuple[float, float] = WIDE, *, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``panels`` axes side by side, in the report's style, without pyplot's state."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])


def themed_svg(figure: Figure, name: str, label: str) -> str:
    """``figure`` as an ``<svg>`` element to stand inside HTML.

    Text stays text; ids are deterministic and begin with ``name``, so that figures do not
    disturb each other on one page; nothing in it refers to the outside.

    Args:
        name: unique on the page, letters and hyphens.
        label: what a screen reader says in place of the picture.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        # Names may be Chinese: the page's fonts draw them, matplotlib's need not.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--figure-font)", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib always writes a viewBox"
    text = escape(label, {'"': "&quot;"})
    head = f'<svg class="figure" role="img" aria-label="{text}" {view_box[0]}>'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    return re.sub(r"\n\s*", "\n", svg).strip()


@dataclass(frozen=True)
class ReportFigure:
    """A picture with the sentence that says what to look for in it."""

    name: str
    title: str
    caption: str
    svg: str

    @classmethod
    def of(cls, figure: Figure, name: str, title: str, caption: str, label: str) -> ReportFigure:
        """A figure that is drawn; its ``label`` is as `themed_svg` takes it."""
        return cls(name, title, caption, themed_svg(figure, name, label))


@dataclass(frozen=True)
class Series:
    """Points of one metric over steps (or tokens), in order."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.x)


def pick(rows: Sequence[Mapping[str, Any]], metric: str, over: str = "step") -> Series:
    """The finite values of ``metric`` against ``over``, of the rows that have both."""
    points = [(as_number(row.get(over)), as_number(row.get(metric))) for row in rows]
    whole = [(x, y) for x, y in points if x is not None and y is not None]
    return Series(tuple(x for x, _ in whole), tuple(y for _, y in whole))


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """At most ``most`` points, each the mean of equally many neighbours."""
    if len(series) <= most:
        return series
    edges = [round(index * len(series) / most) for index in range(most + 1)]
    spans = list(itertools.pairwise(edges))
    return Series(
        tuple(sum(series.x[low:high]) / (high - low) for low, high in spans),
        tuple(sum(series.y[low:high]) / (high - low) for low, high in spans),
    )


def smooth(series: Series, share: float = 0.05) -> Series:
    """The running mean over ``share`` of the points, centred, shorter at both ends."""
    reach = int(len(series) * share / 2)
    if reach == 0:
        return series
    sums = np.cumsum([0.0, *series.y])
    places = np.arange(len(series))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(series))
    return Series(series.x, tuple(((sums[high] - sums[low]) / (high - low)).tolist()))


def noisy_line(
    axes: Axes, series: Series, colour: str, label: str, *, smoothing: float = 0.05
) -> None:
    """The raw values faint, their running mean strong."""
    if series:
        thinned, mean = thin(series), thin(smooth(series, smoothing))
        axes.plot(thinned.x, thinned.y, color=colour, linewidth=0.9, alpha=0.3)
        marker = "o" if len(series) == 1 else None
        axes.plot(mean.x, mean.y, color=colour, label=label, marker=marker)


def marked_line(axes: Axes, series: Series, label: str, colour: str = COLOURS["ink"]) -> None:
    """A point at each value, or at the mean of neighbours where there are many."""
    if series:
        thinned = thin(series, 60)
        style: dict[str, Any] = {"color": colour, "linewidth": 1.1, "markersize": 3.4}
        style |= {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 0.6}
        axes.plot(thinned.x, thinned.y, marker="o", label=label, **style)


def label_axes(axes: Axes, below: str, beside: str = "") -> None:
    """Labels, and few round ticks."""
    axes.set(xlabel=below, ylabel=beside)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
    axes.margins(x=0.02)


def _short_count(value: float, _: object) -> str:
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def share_by_task(axes: Axes, names: Sequence[str]) -> None:
    """A row a task, the first on top, and shares from 0 to 100 % along it."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_weights(
    axes: Axes,
    columns: Sequence[str],
    rows: Sequence[str],
    weights: Sequence[Sequence[float]],
    colour: str = COLOURS["base"],
) -> None:
    """A matrix of shares, such as attention: the darker a cell, the nearer to 1."""
    for row, values in zip(range(len(rows)), weights, strict=False):
        for column, value in zip(range(len(columns)), values, strict=False):
            shade = max(0.0, min(1.0, float(value)))
            if shade >= 0.01:
                cell = Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour)
                cell.set_alpha(round(shade, 2))
                cell.set_linewidth(0)
                axes.add_patch(cell)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False)


def legend_above(axes: Axes) -> None:
    count = len(axes.get_legend_handles_labels()[0])
    if count:
        spaces: dict[str, Any] = {"borderaxespad": 0.1, "handlelength": 1.3, "columnspacing": 1.2}
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=count, **spaces)


def legend_marker(axes: Axes, colour: str, label: str) -> None:
    """An entry of the legend for points that are drawn one by one."""
    axes.plot([], [], color=colour, marker="o", markersize=4, label=label)


ReliabilityCurve = tuple[str, str, Sequence[tuple[float, float, float]]]
"""Label, colour, and bins as (predicted, observed, share of the largest point)."""


def draw_reliability(axes: Axes, curves: Sequence[ReliabilityCurve], said: str, true: str) -> None:
    """Predicted against observed frequency (Guo et al. 2017); a larger point has more items."""
    axes.plot([0, 1], [0, 1], **REFERENCE)
    edge: dict[str, Any] = {"edgecolors": COLOURS["paper"], "linewidths": 0.8}
    for label, colour, bins in curves:
        predicted, observed, shares = zip(*bins, strict=True)
        areas = [10 + 70 * share for share in shares]
        axes.plot(predicted, observed, color=colour, linewidth=1.2, label=label)
        axes.scatter(predicted, observed, s=areas, color=colour, zorder=3, **edge)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=said, ylabel=true)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
