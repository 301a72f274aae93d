"""The reliability diagram of a task: with a temperature, and beside another model's."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.evaluation.calibration import Calibration, calibrate, calibrate_before_and_after
from lmsmith.evaluation.rows import ChoiceRow
from lmsmith.evaluation.run import TaskResult
from lmsmith.report import numbers
from lmsmith.report.drawing import ReliabilityCurve, draw_reliability
from lmsmith.report.evaluation.side_by_side import MODEL_ROLES, ModelResults
from lmsmith.report.svg import COLOURS, WIDE, canvas, themed_svg

LEAST = 20
"""Items; fewer make no diagram."""


def choice_rows(result: TaskResult) -> list[ChoiceRow]:
    """The rows of items with choices."""
    return [row for row in result.rows if isinstance(row, ChoiceRow)]


def calibration_section(
    number: int, result: TaskResult, models: Sequence[ModelResults]
) -> list[dict[str, str]]:
    """Figures of a multiple-choice task, each with its caption.

    One is of the model, as it is and with a temperature. Where other models answered the same
    items a second one sets all side by side, as they are, on all items.

    Args:
        result: the model's own.
        models: all of them, the model last.
    """
    rows, measure = choice_rows(result), result.task.measure
    if len(rows) < LEAST:
        return []
    before, after = calibrate_before_and_after(rows, measure)
    lines = [("as it is", before), ("with temperature", after)]
    caption = (
        f"Confidence against being right, on {before.items} items. Expected calibration error "
        f"{_errors(before)}; with temperature {numbers.number(after.temperature)}, fitted on the "
        f"other items, {numbers.fixed(after.equal_width, 3)} and "
        f"{numbers.fixed(after.equal_mass, 3)}."
    )
    figures = [{"svg": draw_calibration(f"calibration-{number}", lines), "caption": caption}]
    beside = [
        (each.name, calibrate(choice_rows(found), measure))
        for each in models
        for found in each.results
        if found.name == result.name
    ]
    if len(beside) > 1:
        said = "; ".join(
            f"{name} is on average {numbers.percent(each.confidence)} sure and "
            f"{numbers.percent(each.accuracy)} right, expected calibration error {_errors(each)}"
            for name, each in beside
        )
        svg = draw_calibration(f"calibration-{number}-both", beside)
        which = "Both" if len(beside) == 2 else "All"
        caption = f"{which} models on all {beside[-1][1].items} items: {said}."
        figures.append({"svg": svg, "caption": caption})
    return figures


def _errors(each: Calibration) -> str:
    return (
        f"{numbers.fixed(each.equal_width, 3)} with bins of equal width, "
        f"{numbers.fixed(each.equal_mass, 3)} with bins of equally many items"
    )


def draw_calibration(name: str, lines: Sequence[tuple[str, Calibration]]) -> str:
    """The reliability diagram of calibrations; a dot's size is its share of the items."""
    curves = [
        ReliabilityCurve(
            label,
            COLOURS[MODEL_ROLES[place % len(MODEL_ROLES)]],
            [(bin["predicted"], bin["observed"], bin["count"] / each.items) for bin in each.bins],
        )
        for place, (label, each) in enumerate(lines)
    ]
    with canvas(WIDE) as (figure, (axes,)):
        draw_reliability(
            axes, curves, "how sure the model is of its choice", "how often it is right"
        )
        axes.legend(loc="upper left")
        return themed_svg(figure, name, "Reliability diagram: confidence against accuracy.")
