"""Weights of inference: cast, rounded and joined once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lmsmith.models.decoder import Block, FeedForward, GatedFeedForward

WeightKind = Literal["model", "int8"]

GROUP = 64
"""Weights of a row that share a scale, if the row is a multiple; itself a multiple of the kernels'
32."""


@dataclass(frozen=True)
class Weight:
    """A constant matrix, (outputs, inputs).

    Attributes:
        values: float32, bf16, or int8 to be multiplied by ``scales``.
        scales: of int8, float32 (outputs, groups): one for each inputs / groups weights of a row.
        bias: float32 (outputs,), or None.
        shape: outputs and inputs.
        in_panels: whether values and scales have the layout of the C++ kernels
            (native/panels.hpp), flat; else rows.
        for_many: the same in rows, for oneDNN's products of many rows.
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
        """A matrix in PyTorch's layout."""
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
        """Size of values, scales and bias."""
        return sum(t.nbytes for t in (self.values, self.scales, self.bias) if t is not None)

    @functools.cached_property
    def laid_out(self) -> Tensor:
        """The values in oneDNN's layout, made at the first use."""
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
    """Stack matrices, cast or rounded."""
    bias_parts = [bias.detach().float() for bias in biases if bias is not None]
    bias = torch.cat(bias_parts).contiguous() if bias_parts else None
    if kind == "int8":
        values, scales = quantise_int8(torch.cat([matrix.detach() for matrix in matrices]))
        return Weight.in_rows(values, scales, bias)
    parts = [matrix.detach().to(dtype) for matrix in matrices]
    return Weight.in_rows(parts[0] if len(parts) == 1 else torch.cat(parts), None, bias)


class Norm(NamedTuple):
    """A norm's scale, and the shift of LayerNorm."""

    weight: Tensor
    shift: Tensor | None
    epsilon: float


def _read_norm(norm: nn.LayerNorm | nn.RMSNorm) -> Norm:
    assert norm.eps is not None
    return Norm(norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None, norm.eps)


class BlockWeights:
    """Weights of a block; queries, keys and values are one matrix, gate and inner another."""

    def __init__(
        self,
        block: Block,
        dtype: torch.dtype,
        kind: WeightKind,
        prepare: Callable[[Weight], Weight],
    ) -> None:
        attention, layer = block.attention, block.feed_forward
        assert isinstance(layer, FeedForward | GatedFeedForward)
        self.attention_norm = _read_norm(block.attention_norm)
        self.feed_forward_norm = _read_norm(block.feed_forward_norm)
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


def quantise_int8(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Round a matrix (outputs, inputs) to 8 bits: round(w / scale), scale = max |w| / 127.

    Args:
        weight: the matrix.
        group: inputs that share a scale; a whole row's where it does not divide them.

    Returns:
        values: int8 (outputs, inputs).
        scales: float32 (outputs, inputs / group).
    """
    outputs, inputs = weight.shape
    size = group if inputs % group == 0 else inputs
    grouped = weight.float().view(outputs, inputs // size, size)
    scales = grouped.abs().amax(dim=-1) / 127
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales)
    values = (grouped / divisor[..., None]).round().to(torch.int8)
    return values.view(outputs, inputs), scales.contiguous()


@functools.cache
def onednn_linear() -> Any:
    """The bf16 linear layer of torch.compile's frozen graphs, or None.

    Plain `F.linear` converts the weights' layout in every call.
    """
    if not (torch._C._has_mkldnn and torch.cpu._is_avx512_bf16_supported()):
        return None
    try:
        weight = lay_out(torch.zeros(16, 16, dtype=torch.bfloat16))
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.zeros(1, 16, dtype=torch.bfloat16), weight, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return linear


def lay_out(weight: Tensor) -> Tensor:
    """A bf16 matrix in oneDNN's layout."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return result
