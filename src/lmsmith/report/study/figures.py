"""Figures of in-context experiments: values by label, by order, by number of shots, by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lmsmith.evaluation.measures import measure_of
from lmsmith.report.numbers import large_count
from lmsmith.report.svg import COLOURS, WIDE, canvas, themed_svg
from lmsmith.statistics.intervals import Interval

_COLOURS = [COLOURS[role] for role in ("pretrain", "ppo", "sft", "reward", "judge", "human", "ink")]
_TALL = (WIDE[0], 3.2)


@dataclass(frozen=True)
class Line:
    """What belongs together in a figure.

    Attributes:
        label: its name.
        names: of its points.
        shots: of its points.
        values: with their intervals.
        model: whose values they are.
        parameters: of the model.
        variant: lines of one model with different ones are drawn differently.
    """

    label: str
    names: tuple[str, ...]
    shots: tuple[int, ...]
    values: tuple[Interval, ...]
    model: str = ""
    parameters: int = 0
    variant: str = ""


def draw_labels(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """A row a kind of label, a point a model, its interval as a bar."""
    with canvas(_TALL) as (figure, (axes,)):
        rows = lines[0].names
        for number, line in enumerate(lines):
            places = np.arange(len(rows)) + (number - (len(lines) - 1) / 2) * 0.16
            axes.errorbar(
                [each.value for each in line.values],
                places,
                xerr=_ends(line.values),
                fmt="o",
                markersize=4.5,
                elinewidth=1.2,
                color=_colour(number),
                label=line.label,
            )
        if guessing is not None:
            axes.axvline(guessing, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(measure_of(measure).name)
        if measure_of(measure).is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(axes, lines)
        return themed_svg(figure, name, "Values by the labels that the examples show.")


def draw_order(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """A column a model, a point an order."""
    with canvas(WIDE) as (figure, (axes,)):
        for number, line in enumerate(lines):
            values = sorted(each.value for each in line.values)
            beside = number + np.linspace(-0.18, 0.18, len(values))
            axes.scatter(beside, values, s=22, color=_colour(number), alpha=0.85, zorder=3)
            mean = float(np.mean(values))
            axes.plot([number - 0.28, number + 0.28], [mean, mean], color=COLOURS["ink"])
        axes.set_xticks(range(len(lines)), [line.label for line in lines])
        axes.set_xlim(-0.6, len(lines) - 0.4)
        _values_beside(axes, measure, guessing)
        return themed_svg(figure, name, "Values by the order of the examples, one point each.")


def draw_shots(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """Value against number of shots, a line a model; without the instruction dashed."""
    with canvas(_TALL) as (figure, (axes,)):
        variants = list(dict.fromkeys(line.variant for line in lines))
        models = list(dict.fromkeys(line.model for line in lines))
        for line in lines:
            colour = _colour(models.index(line.model))
            axes.plot(
                line.shots,
                [each.value for each in line.values],
                color=colour,
                marker="o",
                markersize=3.5,
                linestyle="-" if variants.index(line.variant) == 0 else (0, (3, 2)),
                label=line.label,
            )
            low, high = [each.low for each in line.values], [each.high for each in line.values]
            axes.fill_between(line.shots, low, high, color=colour, alpha=0.12, linewidth=0)
        every = sorted({count for line in lines for count in line.shots})
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(every, [str(count) for count in every])
        axes.minorticks_off()
        axes.set_xlabel("examples in the context")
        _values_beside(axes, measure, guessing)
        _legend(axes, lines)
        return themed_svg(figure, name, "Value against the number of examples.")


def draw_sizes(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """Value against parameters, a line a number of shots."""
    lines = sorted(lines, key=lambda line: line.parameters)
    with canvas(_TALL) as (figure, (axes,)):
        sizes = [line.parameters for line in lines]
        for number, count in enumerate(lines[0].shots):
            values = [line.values[number] for line in lines]
            axes.plot(
                sizes,
                [each.value for each in values],
                color=_colour(number),
                marker="o",
                markersize=3.5,
                label="1 shot" if count == 1 else f"{count} shots",
            )
        axes.set_xscale("log")
        axes.set_xticks(sizes)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large_count(value)))
        axes.set_xlabel("parameters")
        _values_beside(axes, measure, guessing)
        axes.legend(loc="best")
        return themed_svg(figure, name, "Value against the model's size.")


def _values_beside(axes: Axes, measure: str, guessing: float | None) -> None:
    axes.set_ylabel(measure_of(measure).name)
    if guessing is not None:
        axes.axhline(guessing, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
    if measure_of(measure).is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _ends(values: Sequence[Interval]) -> list[list[float]]:
    """The lengths of error bars below and above."""
    return [
        [max(0.0, each.value - each.low) for each in values],
        [max(0.0, each.high - each.value) for each in values],
    ]


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _legend(axes: Axes, lines: Sequence[Line]) -> None:
    if len(lines) > 1:
        axes.legend(loc="best")
