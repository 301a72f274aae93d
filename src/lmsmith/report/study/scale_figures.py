"""Figures of the study of scale: accuracy by shots, size, digits; loss by compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from lmsmith.report.numbers import large_count
from lmsmith.report.svg import COLOURS, WIDE, canvas, themed_svg
from lmsmith.statistics.fits import Prediction
from lmsmith.statistics.intervals import Interval
from lmsmith.studies.scale.findings import digits_of, is_fitted, pattern_interval, sum_interval
from lmsmith.studies.scale.measuring import SHOTS
from lmsmith.studies.scale.patterns import best_accuracy

Measured = Mapping[str, Any]

_COLOURS = [COLOURS[role] for role in ("muted", "human", "reward", "sft", "ppo", "pretrain", "ink")]
_TALL = (WIDE[0], 3.2)
_BROAD = (6.9, 3.0)
_DASHED = (0, (3, 2))


def draw_pattern(name: str, kind: str, models: Sequence[Measured]) -> str:
    """Accuracy against shots, a line a size; and against size, a line a number of shots."""
    with canvas(_BROAD, panels=2) as (figure, (left, right)):
        for number, each in enumerate(models):
            ends = [pattern_interval(each, kind, shots) for shots in SHOTS]
            _line(left, SHOTS, ends, _colour(number, len(models)), size_label(each))
        bound = best_accuracy(kind)
        if bound is not None:
            left.plot(
                SHOTS,
                [bound(shots) for shots in SHOTS],
                color=COLOURS["ink"],
                linewidth=1,
                linestyle=(0, (1, 2)),
                label="all that the examples tell, on average",
            )
        left.set_xscale("symlog", base=2, linthresh=1)
        left.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
        left.minorticks_off()
        left.set_xlabel("examples in the context")
        for number, shots in enumerate(SHOTS):
            ends = [pattern_interval(each, kind, shots) for each in models]
            label = "1 shot" if shots == 1 else f"{shots} shots"
            _line(right, _sizes(models), ends, _colour(number, len(SHOTS)), label)
        _size_axis(right, models)
        _accuracy_axis(left)
        _accuracy_axis(right)
        left.legend(loc="best")
        right.legend(loc="best")
        return themed_svg(figure, name, f"{kind}: accuracy against examples and against size.")


def draw_sums(name: str, models: Sequence[Measured]) -> str:
    """Accuracy against digits, a panel for each way of answering, a line a size."""
    with canvas(_BROAD, panels=2) as (figure, (left, right)):
        for axes, style, title in (
            (left, "direct", "direct"),
            (right, "chain", "chain of thought"),
        ):
            for number, each in enumerate(models):
                digits = digits_of(each)
                ends = [sum_interval(each, style, count) for count in digits]
                _line(axes, digits, ends, _colour(number, len(models)), size_label(each))
            axes.set_title(title, fontsize=8.5, color=COLOURS["muted"])
            axes.set_xlabel("digits of each number")
            axes.set_xticks(digits_of(models[0]))
            _accuracy_axis(axes)
        left.legend(loc="best")
        return themed_svg(figure, name, "Sums: accuracy against digits, direct and by a chain.")


def draw_sum_sizes(name: str, digits: int, models: Sequence[Measured]) -> str:
    """Accuracy against size on sums of so many digits, direct dashed and by a chain."""
    with canvas(_TALL) as (figure, (axes,)):
        for style, colour, label, dashes in (
            ("chain", COLOURS["ppo"], "chain of thought", "-"),
            ("direct", COLOURS["pretrain"], "direct", _DASHED),
        ):
            ends = [sum_interval(each, style, digits) for each in models]
            _line(axes, _sizes(models), ends, colour, label, dashes)
        _size_axis(axes, models)
        _accuracy_axis(axes)
        axes.legend(loc="best")
        return themed_svg(figure, name, f"Sums of {digits} digits: accuracy against size.")


def draw_law(
    name: str, family: str, models: Sequence[Measured], prediction: Prediction | None
) -> str:
    """Held-out loss against compute; the law fitted to all but the last, and what it predicted."""
    compute = np.array([float(each["compute"]) for each in models])
    losses = [Interval(**each["losses"][family]) for each in models]
    of_law = [number for number, each in enumerate(models) if is_fitted(each)]
    with canvas(_TALL) as (figure, (axes,)):
        law = prediction.law if prediction else None
        if law is not None:
            along = np.geomspace(compute[of_law[0]] / 1.5, compute[of_law[-1]] * 1.5, 100)
            axes.plot(
                along,
                [law(float(x)) for x in along],
                color=COLOURS["muted"],
                linestyle=_DASHED,
                label="law fitted to the smaller ones",
            )
        labels: set[str] = set()
        for number, (x, end) in enumerate(zip(compute, losses, strict=True)):
            if number not in of_law:
                label, role = "of one layer, not fitted", "muted"
            elif number == of_law[-1]:
                label, role = "measured, not fitted", "ppo"
            else:
                label, role = "measured", "pretrain"
            axes.errorbar(
                [x],
                [end.value],
                yerr=[[end.value - end.low], [end.high - end.value]],
                fmt="o",
                markersize=5,
                color=COLOURS[role],
                label=None if label in labels else label,
            )
            labels.add(label)
        if prediction is not None and prediction.predicted is not None:
            axes.plot(
                [compute[of_law[-1]]],
                [prediction.predicted],
                marker="x",
                markersize=7,
                linestyle="none",
                color=COLOURS["ink"],
                label="predicted",
            )
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("operations of training")
        axes.set_ylabel("held-out loss, nats per token")
        axes.legend(loc="best")
        return themed_svg(figure, name, f"{family}: held-out loss against compute.")


def size_label(measured: Measured) -> str:
    """``4x128, 0.82 million``."""
    return f"{measured['model']}, {large_count(float(measured['parameters']))}"


def _line(
    axes: Axes,
    places: Sequence[float],
    ends: Sequence[Interval],
    colour: str,
    label: str,
    dashes: Any = "-",
) -> None:
    axes.plot(
        places,
        [end.value for end in ends],
        color=colour,
        marker="o",
        markersize=3.5,
        linestyle=dashes,
        label=label,
    )
    low, high = [end.low for end in ends], [end.high for end in ends]
    axes.fill_between(places, low, high, color=colour, alpha=0.14, linewidth=0)


def _sizes(models: Sequence[Measured]) -> list[float]:
    return [float(each["parameters"]) for each in models]


def _size_axis(axes: Axes, models: Sequence[Measured]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(_sizes(models))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_xlabel("parameters")


def _accuracy_axis(axes: Axes) -> None:
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _short(value: float) -> str:
    return f"{value / 1e6:.2g}M" if value >= 1e6 else f"{value / 1e3:.0f}k"


def _colour(number: int, of: int) -> str:
    """The largest has the last colour."""
    return _COLOURS[max(0, len(_COLOURS) - 1 - of + number) % len(_COLOURS)]
