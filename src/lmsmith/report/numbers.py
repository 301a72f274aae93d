"""Numbers as a person reads them: durations, sizes, counts, shares, intervals, a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmsmith.core.format import UNKNOWN, format_duration, format_size

NBSP = "\u00a0"


def as_number(value: object) -> float | None:
    """``value`` as a float, or None when it is not a finite number (JSON has no NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _formatted(value: float | None, spec: str) -> str:
    """``value`` by a format, with a true minus sign; – when unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = format(value, spec)
    return text.replace("-", "\u2212") if text.startswith("-") else text


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and thousands separated; – when unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return _formatted(int(value), ",")
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 14:
        return _formatted(value, f".{digits - 1}e")
    return _formatted(value, f",.{max(digits - 1 - magnitude, 0)}f")


def signed(value: float | None, decimals: int = 2) -> str:
    """``value`` with its sign always shown: +0.42; thousands without decimals."""
    return _formatted(value, f"+,.{0 if abs(value or 0) >= 1000 else decimals}f")


def fixed(value: float | None, decimals: int) -> str:
    """``value`` with ``decimals``; – when unknown."""
    return _formatted(value, f",.{decimals}f")


def percent(share: float | None, decimals: int = 1) -> str:
    """A share between 0 and 1 as per cent."""
    return _formatted(share, f".{decimals}%").replace("%", f"{NBSP}%")


def percent_interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of shares, "62.1 to 74.0 %"; empty when either is unknown."""
    if low is None or high is None:
        return ""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def signed_interval(low: float, high: float, decimals: int = 2) -> str:
    """The two ends of a difference's interval, "+0.42 to +1.30"; – where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def duration(seconds: float | None) -> str:
    """`format_duration` for a page: a line does not break within it."""
    return format_duration(seconds).replace(" ", NBSP)


def size(number_of_bytes: float | None) -> str:
    """`format_size` for a page: a line does not break within it."""
    return format_size(number_of_bytes).replace(" ", NBSP)


def large_count(count: float) -> str:
    """A count in words where it is large: "5.9 million"."""
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if count >= scale:
            return f"{count / scale:.3g}{NBSP}{word}"
    return f"{count:,.0f}"


def machine_words(hardware: Mapping[str, Any]) -> str:
    """A record's machine: "AMD EPYC, 2 cores"."""
    cores = hardware.get("cores", "")
    return f"{hardware.get('cpu', '')}, {cores}{NBSP}core{'' if cores == 1 else 's'}"
