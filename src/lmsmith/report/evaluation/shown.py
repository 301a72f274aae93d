"""Values, intervals and scores on parts of the items as text, for pages and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmsmith.core.format import UNKNOWN
from lmsmith.evaluation.measures import measure_of
from lmsmith.report import numbers
from lmsmith.statistics.intervals import Interval


def shown_value(measure: str, value: float) -> str:
    """A share in per cent, anything else as a number."""
    if measure_of(measure).is_share:
        return numbers.percent(value)
    return numbers.number(value, 4)


def shown_interval(measure: str, interval: Interval) -> str:
    """The interval's two ends."""
    if measure_of(measure).is_share:
        return numbers.percent_interval(interval.low, interval.high)
    if math.isnan(interval.low):
        return UNKNOWN
    return f"{numbers.number(interval.low, 4)} to {numbers.number(interval.high, 4)}"


def shown_difference(measure: str, difference: Interval) -> tuple[str, str]:
    """A difference and its interval's two ends; a share's in points of per cent."""
    scale, decimals = (100.0, 1) if measure_of(measure).is_share else (1.0, 3)
    value, low, high = (scale * x for x in (difference.value, difference.low, difference.high))
    return numbers.signed(value, decimals), numbers.signed_interval(low, high, decimals)


def share_with_interval(share: Interval) -> str:
    """``97.5 % (95.5 to 98.6 %)``."""
    ends = numbers.percent_interval(share.low, share.high)
    return f"{numbers.percent(share.value)} ({ends})"


def short_names(names: Sequence[str]) -> list[str]:
    """Models' names without the folders that all of them are in."""
    parts = [name.split("/") for name in names]
    least = min(len(each) for each in parts) - 1
    alike = 0
    while alike < least and len({each[alike] for each in parts}) == 1:
        alike += 1
    return ["/".join(each[alike:]) for each in parts]


def contamination_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Scores on all, clean and dirty items: a row a result of results.json and rule of overlap.

    Returns:
        ``task, rule, length, measure, overlap``, and of ``all, clean, dirty, headline`` the value
        with its interval.
    """
    return [
        _contamination_row(result, each)
        for result in record["results"]
        for each in result.get("contamination", [])
    ]


def _contamination_row(result: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    measure = str(found["measure"])

    def both(part: Mapping[str, float] | None) -> str:
        if part is None:
            return UNKNOWN
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
