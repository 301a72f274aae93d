"""Figures of studies: values by label, order, shots and size of model; loss by compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from lmsmith.evaluation.measures import measure_of
from lmsmith.report.drawing import COLOURS, DASHED, REFERENCE, WIDE, canvas, themed_svg
from lmsmith.report.numbers import large_count
from lmsmith.statistics.fits import Prediction
from lmsmith.statistics.intervals import Interval
from lmsmith.studies.in_context import ArmResult, TaskStudy
from lmsmith.studies.scale.findings import digits_of, is_fitted, pattern_interval, sum_interval
from lmsmith.studies.scale.measuring import SHOTS
from lmsmith.studies.scale.texts import best_accuracy

Measured = Mapping[str, Any]
"""A model's part of the results of the study of scale."""

BEST = "all that the examples tell, on average"
"""Name of the accuracy that no reader of a pattern can exceed."""

_COLOURS = [COLOURS[role] for role in ("pretrain", "ppo", "sft", "reward", "judge", "human", "ink")]
_BY_SIZE = [COLOURS[r] for r in ("muted", "human", "reward", "sft", "ppo", "pretrain", "ink")]
_TALL = (WIDE[0], 3.2)
_BROAD = (6.9, 3.0)


@dataclass(frozen=True)
class Line:
    """Arms of one model as the points of one line, solid or dashed by its variant."""

    label: str
    found: Sequence[ArmResult]
    study: TaskStudy
    variant: str = ""

    @property
    def values(self) -> list[Interval]:
        return [each.result.headline for each in self.found]

    @property
    def shots(self) -> list[int]:
        return [each.arm.setting.shots or 0 for each in self.found]


def draw_labels(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """A row a kind of label, a point a model, its interval as a bar."""
    with canvas(_TALL) as (figure, (axes,)):
        rows = [each.arm.name for each in lines[0].found]
        style: dict[str, Any] = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.2}
        for number, line in enumerate(lines):
            places = np.arange(len(rows)) + (number - (len(lines) - 1) / 2) * 0.16
            values, ends = [each.value for each in line.values], _bars(line.values)
            style |= {"color": _colour(number), "label": line.label}
            axes.errorbar(values, places, xerr=ends, **style)
        if guessing is not None:
            axes.axvline(guessing, **REFERENCE)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(measure_of(measure).name)
        if measure_of(measure).is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        if len(lines) > 1:
            axes.legend(loc="best")
        return themed_svg(figure, name, "Values by the labels that the examples show.")


def draw_order(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """A column a model, a point an order."""
    with canvas() as (figure, (axes,)):
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
        models = list(dict.fromkeys(line.study.model for line in lines))
        for line in lines:
            colour = _colour(models.index(line.study.model))
            dashes = "-" if line.variant == lines[0].variant else DASHED
            _line_with_band(axes, line.shots, line.values, colour, line.label, dashes, 0.12)
        _shots_axis(axes, sorted({count for line in lines for count in line.shots}))
        _values_beside(axes, measure, guessing)
        if len(lines) > 1:
            axes.legend(loc="best")
        return themed_svg(figure, name, "Value against the number of examples.")


def draw_sizes(name: str, lines: Sequence[Line], measure: str, guessing: float | None) -> str:
    """Value against parameters, a line a number of shots."""
    lines = sorted(lines, key=lambda line: line.study.parameters)
    with canvas(_TALL) as (figure, (axes,)):
        sizes = [float(line.study.parameters) for line in lines]
        for number, count in enumerate(lines[0].shots):
            values = [line.values[number].value for line in lines]
            colour, label = _colour(number), shots_label(count)
            axes.plot(sizes, values, color=colour, marker="o", markersize=3.5, label=label)
        _size_axis(axes, sizes, large_count)
        _values_beside(axes, measure, guessing)
        axes.legend(loc="best")
        return themed_svg(figure, name, "Value against the model's size.")


def draw_pattern(name: str, kind: str, models: Sequence[Measured]) -> str:
    """Accuracy against shots, a line a size; and against size, a line a number of shots."""
    with canvas(_BROAD, panels=2) as (figure, (left, right)):
        for number, each in enumerate(models):
            ends = [pattern_interval(each, kind, shots) for shots in SHOTS]
            _line_with_band(left, SHOTS, ends, _by_size(number, models), size_label(each))
        bound = best_accuracy(kind)
        if bound is not None:
            best: dict[str, Any] = {"color": COLOURS["ink"], "linestyle": (0, (1, 2))}
            left.plot(SHOTS, [bound(shots) for shots in SHOTS], linewidth=1, label=BEST, **best)
        _shots_axis(left, SHOTS)
        for number, shots in enumerate(SHOTS):
            ends = [pattern_interval(each, kind, shots) for each in models]
            colour = _by_size(number, SHOTS)
            _line_with_band(right, _sizes(models), ends, colour, shots_label(shots))
        _size_axis(right, _sizes(models), _short)
        for axes in (left, right):
            _accuracy_axis(axes)
            axes.legend(loc="best")
        return themed_svg(figure, name, f"{kind}: accuracy against examples and against size.")


def draw_sums(name: str, models: Sequence[Measured]) -> str:
    """Accuracy against digits, a panel for each way of answering, a line a size."""
    with canvas(_BROAD, panels=2) as (figure, (left, right)):
        panels = ((left, "direct", "direct"), (right, "chain", "chain of thought"))
        for axes, style, title in panels:
            for number, each in enumerate(models):
                digits = digits_of(each)
                ends = [sum_interval(each, style, count) for count in digits]
                _line_with_band(axes, digits, ends, _by_size(number, models), size_label(each))
            axes.set_title(title, fontsize=8.5, color=COLOURS["muted"])
            axes.set(xlabel="digits of each number", xticks=digits_of(models[0]))
            _accuracy_axis(axes)
        left.legend(loc="best")
        return themed_svg(figure, name, "Sums: accuracy against digits, direct and by a chain.")


def draw_sum_sizes(name: str, digits: int, models: Sequence[Measured]) -> str:
    """Accuracy against size on sums of so many digits, direct dashed and by a chain."""
    with canvas(_TALL) as (figure, (axes,)):
        for style, role, label, dashes in (
            ("chain", "ppo", "chain of thought", "-"),
            ("direct", "pretrain", "direct", DASHED),
        ):
            ends = [sum_interval(each, style, digits) for each in models]
            _line_with_band(axes, _sizes(models), ends, COLOURS[role], label, dashes)
        _size_axis(axes, _sizes(models), _short)
        _accuracy_axis(axes)
        axes.legend(loc="best")
        return themed_svg(figure, name, f"Sums of {digits} digits: accuracy against size.")


def draw_law(
    name: str, family: str, models: Sequence[Measured], prediction: Prediction | None
) -> str:
    """Held-out loss against compute; the law fitted to all but the last, and its prediction."""
    compute = np.array([float(each["compute"]) for each in models])
    losses = [Interval(**each["losses"][family]) for each in models]
    of_law = [number for number, each in enumerate(models) if is_fitted(each)]
    with canvas(_TALL) as (figure, (axes,)):
        law = prediction.law if prediction else None
        if law is not None:
            along = np.geomspace(compute[of_law[0]] / 1.5, compute[of_law[-1]] * 1.5, 100)
            style: dict[str, Any] = {"color": COLOURS["muted"], "linestyle": DASHED}
            fitted, label = [law(float(x)) for x in along], "law fitted to the smaller ones"
            axes.plot(along, fitted, label=label, **style)
        labels: set[str] = set()
        for number, (x, end) in enumerate(zip(compute, losses, strict=True)):
            if number not in of_law:
                label, role = "of one layer, not fitted", "muted"
            elif number == of_law[-1]:
                label, role = "measured, not fitted", "ppo"
            else:
                label, role = "measured", "pretrain"
            style = {"fmt": "o", "markersize": 5, "color": COLOURS[role]}
            named = None if label in labels else label
            axes.errorbar([x], [end.value], yerr=_bars([end]), label=named, **style)
            labels.add(label)
        if prediction is not None and prediction.predicted is not None:
            style = {"marker": "x", "markersize": 7, "linestyle": "none", "color": COLOURS["ink"]}
            axes.plot([compute[of_law[-1]]], [prediction.predicted], label="predicted", **style)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="operations of training", ylabel="held-out loss, nats per token")
        axes.legend(loc="best")
        return themed_svg(figure, name, f"{family}: held-out loss against compute.")


def size_label(measured: Measured) -> str:
    """``4x128, 0.82 million``."""
    return f"{measured['model']}, {large_count(float(measured['parameters']))}"


def shots_label(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots} shots"


def _line_with_band(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    colour: str,
    label: str,
    dashes: Any = "-",
    alpha: float = 0.14,
) -> None:
    """Values joined by a line, their intervals as a band around it."""
    style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linestyle": dashes, "label": label}
    axes.plot(places, [each.value for each in values], color=colour, **style)
    low, high = [each.low for each in values], [each.high for each in values]
    axes.fill_between(places, low, high, color=colour, alpha=alpha, linewidth=0)


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """The lengths of error bars below and above."""
    return [
        [max(0.0, each.value - each.low) for each in values],
        [max(0.0, each.high - each.value) for each in values],
    ]


def _values_beside(axes: Axes, measure: str, guessing: float | None) -> None:
    axes.set_ylabel(measure_of(measure).name)
    if guessing is not None:
        axes.axhline(guessing, **REFERENCE)
    if measure_of(measure).is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _accuracy_axis(axes: Axes) -> None:
    axes.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _shots_axis(axes: Axes, shots: Sequence[int]) -> None:
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(shots, [str(count) for count in shots])
    axes.minorticks_off()
    axes.set_xlabel("examples in the context")


def _size_axis(axes: Axes, sizes: Sequence[float], written: Callable[[float], str]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axes.set_xlabel("parameters")


def _sizes(models: Sequence[Measured]) -> list[float]:
    return [float(each["parameters"]) for each in models]


def _short(value: float) -> str:
    return f"{value / 1e6:.2g}M" if value >= 1e6 else f"{value / 1e3:.0f}k"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _by_size(number: int, of: Sequence[object]) -> str:
    """The largest has the last colour."""
    return _BY_SIZE[max(0, len(_BY_SIZE) - 1 - len(of) + number) % len(_BY_SIZE)]
