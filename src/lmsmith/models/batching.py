"""Sequences in groups of like length, so that little of a padded batch is padding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lmsmith.models.config import ModelConfig

ACTIVATION_BYTES = 4_000_000_000
"""Most bytes that rows computed together keep for the backward pass."""


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


def activation_bytes(config: ModelConfig, rows: int, length: int) -> int:
    """Upper estimate of the bytes that a forward pass keeps for its backward pass.

    In float32: twelve times the width (norms, queries, keys, values, residuals), four times the
    feed-forward layer's inner width, and attention scores and probabilities.
    """
    numbers = 12 * config.width + 4 * config.resolved_ffn_width + 2 * config.heads * length
    return 4 * config.layers * rows * length * numbers


def memory_groups(
    lengths: Sequence[int], config: ModelConfig, most: int = ACTIVATION_BYTES
) -> list[list[int]]:
    """Indices in groups of like length, the longest first, each within ``most`` bytes.

    All of them, in their own order, where they fit together. A row that is too long is alone.
    """
    cost = partial(activation_bytes, config)
    if cost(len(lengths), max(lengths)) <= most:
        return [list(range(len(lengths)))]
    return length_batches(lengths, most, cost)
