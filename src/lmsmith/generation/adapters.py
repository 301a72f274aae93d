"""Low-rank adapters beside the weights of inference: each sequence of a batch has its own, or none.

The base's product is that of the whole batch. Then the rows of each adapter, which are adjacent,
get (x Aᵀ) Bᵀ on top, B times α/r. Rows without an adapter cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lmsmith.device import HOST
from lmsmith.generation.weights import Weight, read_weight
from lmsmith.models.adapters import LowRank, side_by_side

MATRICES = ("query_key_value", "output", "inner", "feed_forward_output")
"""Matrices of a block, as `BlockWeights` calls them; kernels.cpp has them in this order."""

_LAYERS = {
    "query_key_value": ("attention.query_key_value",),
    "output": ("attention.output",),
    "inner": ("feed_forward.gate", "feed_forward.inner"),
    "feed_forward_output": ("feed_forward.output",),
}
"""Matrix → layers of the decoder that are stacked in it, as far as the decoder has them."""


@dataclass(frozen=True)
class Pair:
    """A (rank, inputs) and B (outputs, rank), the latter times α/r."""

    down: Weight
    up: Weight


class AdapterWeights:
    """An adapter in the type of the products.

    Args:
        low_rank: its matrices by the names of the decoder's layers.
        heights: outputs of the decoder's layers by name.
        layers: blocks of the decoder.
        dtype: of the products.
        prepare: lays a weight out for the kernels.
        device: of the matrices.

    Attributes:
        layers: of each block, the pairs by the names of `MATRICES`; none where nothing is adapted.
        rank: the highest of a pair.
    """

    def __init__(
        self,
        low_rank: LowRank,
        heights: dict[str, int],
        layers: int,
        dtype: torch.dtype,
        prepare: Callable[[Weight], Weight],
        device: torch.device = HOST,
    ) -> None:
        def ready(matrix: Tensor) -> Weight:
            return prepare(read_weight([matrix.to(device)], [None], dtype, "model"))

        self.layers: list[dict[str, Pair]] = []
        for layer in range(layers):
            pairs = {}
            for matrix, parts in _LAYERS.items():
                names = [f"blocks.{layer}.{part}" for part in parts]
                names = [name for name in names if name in heights]
                if any(name in low_rank for name in names):
                    found = [low_rank.get(name) for name in names]
                    down, up = side_by_side(found, [heights[name] for name in names])
                    pairs[matrix] = Pair(ready(down), ready(up))
            self.layers.append(pairs)
        ranks = (pair.down.outputs for pairs in self.layers for pair in pairs.values())
        self.rank = max(ranks, default=0)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        pairs = (pair for layer in self.layers for pair in layer.values())
        return sum(pair.down.bytes + pair.up.bytes for pair in pairs)


class Group(NamedTuple):
    """Tokens ``first`` to ``end`` of a forward pass, which are one adapter's."""

    adapter: AdapterWeights
    first: int
    end: int


def group_spans(
    adapters: Sequence[AdapterWeights | None], counts: Sequence[int]
) -> tuple[list[int], list[Group]]:
    """An order of spans in which each adapter's are adjacent, and the groups of tokens in it.

    Args:
        adapters: of each span.
        counts: tokens of each span.
    """
    known = list(dict.fromkeys(each for each in adapters if each is not None))
    order = [n for wanted in (None, *known) for n, each in enumerate(adapters) if each is wanted]
    groups, at = list[Group](), 0
    for n in order:
        adapter, end = adapters[n], at + counts[n]
        if adapter is not None:
            joins = groups and groups[-1].adapter is adapter
            first = groups.pop().first if joins else at
            groups.append(Group(adapter, first, end))
        at = end
    return order, groups
