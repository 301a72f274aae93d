"""Rows of a metrics log as lines to draw: picked, thinned and smoothed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.report.run.records import as_number

MOST_POINTS = 400
"""A line of more points than this looks the same and only makes the page heavier."""


@dataclass(frozen=True)
class Series:
    """Points of one metric over steps (or tokens), in order."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.x)

    def __bool__(self) -> bool:
        return bool(self.x)


def pick(rows: Sequence[dict[str, Any]], metric: str, over: str = "step") -> Series:
    """The finite values of ``metric`` against ``over``, of the rows that have both."""
    points = [(as_number(row.get(over)), as_number(row.get(metric))) for row in rows]
    whole = [(x, y) for x, y in points if x is not None and y is not None]
    return Series(tuple(x for x, _ in whole), tuple(y for _, y in whole))


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """At most ``most`` points, each the mean of equally many neighbours."""
    if len(series) <= most:
        return series
    edges = [round(index * len(series) / most) for index in range(most + 1)]
    spans = list(itertools.pairwise(edges))
    return Series(
        tuple(sum(series.x[low:high]) / (high - low) for low, high in spans),
        tuple(sum(series.y[low:high]) / (high - low) for low, high in spans),
    )


def smooth(series: Series, share: float = 0.05) -> Series:
    """The running mean over ``share`` of the points, centred, shorter at both ends."""
    reach = int(len(series) * share / 2)
    if reach == 0:
        return series
    sums = [0.0]
    for value in series.y:
        sums.append(sums[-1] + value)
    last = len(series) - 1
    means = []
    for index in range(len(series)):
        low, high = max(index - reach, 0), min(index + reach, last) + 1
        means.append((sums[high] - sums[low]) / (high - low))
    return Series(series.x, tuple(means))
