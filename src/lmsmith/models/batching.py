"""Sequences in groups of like length, so that little of a padded batch is padding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def length_batches(
    lengths: Sequence[int], most: int, cost: Callable[[int, int], int] = operator.mul
) -> list[list[int]]:
    """Group indices so that a group's ``cost(rows, longest length)`` stays within ``most``.

    The default cost is tokens. The longest come first, so that a lack of memory shows at once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and cost(len(groups[-1]) + 1, lengths[groups[-1][0]]) <= most:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def length_groups(lengths_b: Tensor, rows: int) -> list[Tensor]:
    """Indices in groups of at most ``rows`` rows of like length, the longest first."""
    return list(torch.split(lengths_b.argsort(descending=True, stable=True), rows))
