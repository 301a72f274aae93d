"""Sequences in groups of like length, so that little of a padded batch is padding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lmsmith.models.config import ModelConfig
from lmsmith.runs.stage_folder import derive_seed

ACTIVATION_BYTES = 2_000_000_000
"""Most bytes that rows computed together keep for the backward pass."""

WINDOW_BATCHES = 32
"""Batches whose rows are sorted by length together, to save padding (`padding_share` of
fine-tuning's metrics)."""


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


def epoch_batches(
    lengths: Sequence[int],
    batch: int,
    epochs: int,
    seed: int,
    groups: Sequence[object] | None = None,
) -> list[list[int]]:
    """Indices of every step's rows, each row once an epoch.

    Rows are shuffled, sorted by length within windows of `WINDOW_BATCHES`, cut into batches, and
    the batches shuffled.

    Args:
        batch: rows of a step.
        groups: of each row, if rows of one group stand in one batch; a batch then has so many
            groups.
    """
    if groups is not None:
        members: dict[object, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        indices = list(members.values())
        longest = [max(lengths[index] for index in each) for each in indices]
        found = epoch_batches(longest, batch, epochs, seed)
        return [[index for place in step for index in indices[place]] for step in found]
    batches: list[list[int]] = []
    window = batch * WINDOW_BATCHES
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        order = torch.randperm(len(lengths), generator=generator).tolist()
        found = []
        for start in range(0, len(order), window):
            inside = sorted(order[start : start + window], key=lambda index: lengths[index])
            found += [inside[i : i + batch] for i in range(0, len(inside), batch)]
        shuffled = torch.randperm(len(found), generator=generator).tolist()
        batches += [found[index] for index in shuffled]
    return batches
