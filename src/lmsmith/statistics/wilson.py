"""The interval of a share that is counted: right answers among so many."""

from __future__ import annotations

from statistics import NormalDist

from lmsmith.statistics.bootstrap import Interval


def wilson_interval(right: int, items: int, level: float = 0.95) -> Interval:
    """The share with Wilson's score interval (Wilson 1927), which holds at 0 and at 1 too.

    centre = (p + z²/2n) / (1 + z²/n), half width = z √(p(1 − p)/n + z²/4n²) / (1 + z²/n).

    Raises:
        ValueError: there are no items, or more right ones than items.
    """
    if not 0 <= right <= items or items == 0:
        raise ValueError(f"{right} of {items}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, square = right / items, z * z / items
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / items + square / (4 * items)) ** 0.5
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == items else min(1.0, centre + half)
    return Interval(share, low, high)
