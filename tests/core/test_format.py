"""Durations and sizes for people."""

from __future__ import annotations

import pytest

from lmsmith.core.format import format_duration, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (86400, "24 h 00 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (12_345_678, "12.3 MB"),
        (1_240_000_000, "1.24 GB"),
        (5e15, "5,000 TB"),
        (None, "–"),
    ],
)
def test_sizes(size: float | None, text: str) -> None:
    assert format_size(size) == text
