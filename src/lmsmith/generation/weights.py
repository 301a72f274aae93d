"""Weights in the form that they are read in: cast, rounded and put together once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lmsmith.generation.onednn import lay_out
from lmsmith.generation.quantise import quantise_int8
from lmsmith.models.decoder import Block
from lmsmith.models.feed_forward import FeedForward, GatedFeedForward

WeightKind = Literal["model", "int8"]


@dataclass(frozen=True)
class Weight:
    """A matrix that is only read, (outputs, inputs).

    Attributes:
        values: float32, bf16, or int8, which ``scales`` times are the weights.
        scales: of int8, float32 (outputs, groups): one for each inputs / groups weights of a row.
        bias: float32 (outputs,), or None.
        shape: outputs and inputs.
        in_panels: whether values and scales stand as the C++ kernels like them
            (native/panels.hpp), flat; else in rows.
        for_many: the same in rows, for products of many rows elsewhere.
    """

    values: Tensor
    scales: Tensor | None
    bias: Tensor | None
    shape: tuple[int, int]
    in_panels: bool = False
    for_many: Weight | None = None

    @classmethod
    def in_rows(
        cls, values: Tensor, scales: Tensor | None = None, bias: Tensor | None = None
    ) -> Weight:
        """Of a matrix as PyTorch has it."""
        outputs, inputs = values.shape
        return cls(values.contiguous(), scales, bias, (outputs, inputs))

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        outputs, inputs = self.shape
        if self.scales is None:
            return inputs
        whole = -(-outputs // 16) * 16 if self.in_panels else outputs
        return inputs * whole // self.scales.numel()

    @property
    def bytes(self) -> int:
        """What reading it moves."""
        parts = [part for part in (self.values, self.scales, self.bias) if part is not None]
        return sum(part.numel() * part.element_size() for part in parts)

    @functools.cached_property
    def laid_out(self) -> Tensor:
        """The values as oneDNN reads them; kept beside them from the first use."""
        return lay_out(self.values)

    def as_dtype(self, dtype: torch.dtype) -> Tensor:
        """The values multiplied out, in ``dtype``."""
        if self.scales is None:
            return self.values.to(dtype)
        outputs, groups = self.scales.shape
        grouped = self.values.float().view(outputs, groups, -1) * self.scales[..., None]
        return grouped.flatten(1).to(dtype)


def read_weight(
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    dtype: torch.dtype,
    kind: WeightKind,
) -> Weight:
    """Matrices one under the other, as they are read."""
    bias_parts = [bias.detach().float() for bias in biases if bias is not None]
    bias = torch.cat(bias_parts).contiguous() if bias_parts else None
    if kind == "int8":
        values, scales = quantise_int8(torch.cat([matrix.detach() for matrix in matrices]))
        return Weight.in_rows(values, scales, bias)
    parts = [matrix.detach().to(dtype) for matrix in matrices]
    return Weight.in_rows(parts[0] if len(parts) == 1 else torch.cat(parts), None, bias)


class Norm:
    """A norm's scale, and the shift of LayerNorm."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        self.weight = norm.weight
        self.shift = norm.bias if isinstance(norm, nn.LayerNorm) else None
        assert norm.eps is not None
        self.epsilon = norm.eps


class BlockWeights:
    """The weights of a block; queries, keys and values are one matrix, gate and inner another."""

    def __init__(
        self,
        block: Block,
        dtype: torch.dtype,
        kind: WeightKind,
        prepare: Callable[[Weight], Weight],
    ) -> None:
        attention, layer = block.attention, block.feed_forward
        assert isinstance(layer, FeedForward | GatedFeedForward)
        self.attention_norm = Norm(block.attention_norm)
        self.feed_forward_norm = Norm(block.feed_forward_norm)
        inner = [layer.gate, layer.inner] if isinstance(layer, GatedFeedForward) else [layer.inner]

        def ready(*layers: nn.Linear) -> Weight:
            weights, biases = [x.weight for x in layers], [x.bias for x in layers]
            return prepare(read_weight(weights, biases, dtype, kind))

        self.query_key_value = ready(attention.query_key_value)
        self.output = ready(attention.output)
        self.inner = ready(*inner)
        self.feed_forward_output = ready(layer.output)

    @property
    def matrices(self) -> list[Weight]:
        return [self.query_key_value, self.output, self.inner, self.feed_forward_output]
