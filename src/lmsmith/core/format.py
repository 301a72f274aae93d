"""Durations and sizes as people read them."""

from __future__ import annotations

import math

UNKNOWN = "–"


def format_duration(seconds: float | None) -> str:
    """Seconds as ``0.4 s``, ``42 s``, ``6 min 12 s`` or ``2 h 05 min``; – where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_size(number_of_bytes: float | None) -> str:
    """Bytes in decimal units with three digits: ``1.24 GB``; – where unknown."""
    if number_of_bytes is None or not math.isfinite(number_of_bytes):
        return UNKNOWN
    value, unit = float(number_of_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    decimals = 0 if unit == "bytes" else max(0, 2 - math.floor(math.log10(max(1.0, abs(value)))))
    return f"{value:,.{decimals}f} {unit}"
