"""Numbers as a person reads them: durations, sizes, counts, shares and intervals."""

from __future__ import annotations

import math

from lmsmith.core.format import UNKNOWN as MISSING
from lmsmith.core.format import format_duration, format_size

NBSP = "\u00a0"


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and thousands separated; – when unknown."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return minus(f"{int(value):,}")
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 14:
        return minus(f"{value:.{digits - 1}e}")
    return minus(f"{value:,.{max(digits - 1 - magnitude, 0)}f}")


def minus(text: str) -> str:
    """A true minus sign in place of the hyphen that Python prints."""
    return text.replace("-", "\u2212") if text.startswith("-") else text


def signed(value: float | None, decimals: int = 2) -> str:
    """``value`` with its sign always shown: +0.42; thousands without decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    return minus(f"{value:+,.{0 if abs(value) >= 1000 else decimals}f}")


def fixed(value: float | None, decimals: int) -> str:
    """``value`` with so many decimals; – when unknown."""
    if value is None or not math.isfinite(value):
        return MISSING
    return minus(f"{value:,.{decimals}f}")


def percent(share: float | None, decimals: int = 1) -> str:
    """A share between 0 and 1 as per cent."""
    if share is None or not math.isfinite(share):
        return MISSING
    return minus(f"{100 * share:.{decimals}f}") + NBSP + "%"


def percent_interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of shares, "62.1 to 74.0 %"; empty when either is unknown."""
    if low is None or high is None:
        return ""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def signed_interval(low: float, high: float, decimals: int = 2) -> str:
    """The two ends of a difference's interval, "+0.42 to +1.30"; – where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def duration(seconds: float | None) -> str:
    """`format_duration` for a page: a line does not break within it."""
    return format_duration(seconds).replace(" ", NBSP)


def size(number_of_bytes: float | None) -> str:
    """`format_size` for a page: a line does not break within it."""
    return format_size(number_of_bytes).replace(" ", NBSP)


def large_count(count: float | None) -> str:
    """A count in words where it is large: "5.9 million"."""
    if count is None:
        return MISSING
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if count >= scale:
            return f"{count / scale:.3g}{NBSP}{word}"
    return f"{count:,.0f}"
