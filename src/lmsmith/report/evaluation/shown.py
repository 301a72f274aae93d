"""How values, intervals and scores on parts of the items are written, on pages and in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmsmith.evaluation.measures import measure_of
from lmsmith.report import numbers
from lmsmith.statistics.intervals import Interval

NOTHING = "–"
"""Stands where there is no value."""


def shown_value(measure: str, value: float) -> str:
    """A share in per cent, anything else as a number."""
    if measure_of(measure).is_share:
        return numbers.percent(value)
    return numbers.number(value, 4)


def short_names(names: Sequence[str]) -> list[str]:
    """Models' names without the folders that all of them are in."""
    parts = [name.split("/") for name in names]
    least = min(len(each) for each in parts) - 1
    alike = 0
    while alike < least and len({each[alike] for each in parts}) == 1:
        alike += 1
    return ["/".join(each[alike:]) for each in parts]


def shown_interval(measure: str, interval: Interval) -> str:
    """The interval's two ends."""
    if measure_of(measure).is_share:
        return numbers.percent_interval(interval.low, interval.high)
    if math.isnan(interval.low):
        return NOTHING
    return f"{numbers.number(interval.low, 4)} to {numbers.number(interval.high, 4)}"


def contamination_row(result: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    """A score on all, clean and dirty items, in words.

    Args:
        result: as results.json has it.
        found: one of its ``contamination``.

    Returns:
        ``task, rule, length, measure, overlap``, and of ``all, clean, dirty, headline`` the value
        with its interval.
    """
    measure = str(found["measure"])

    def both(part: Mapping[str, float] | None) -> str:
        if part is None:
            return NOTHING
        interval = Interval(**part)
        return f"{shown_value(measure, interval.value)} ({shown_interval(measure, interval)})"

    shots = "" if result["shots"] == "0" else f", {result['shots']}-shot"
    unit = "words" if found["rule"] == "gpt3" else "characters"
    return {
        "task": f"{result['task']}{shots}",
        "rule": str(found["rule"]).upper().replace("GPT", "GPT-"),
        "length": f"{found['n']} {unit}",
        "measure": measure_of(measure).name,
        "overlap": f"{found['dirty_items']} of {found['dirty_items'] + found['clean_items']}",
        **{part: both(found[part]) for part in ("all", "clean", "dirty")},
        "headline": shown_value(measure, found["headline"]["value"]),
    }
