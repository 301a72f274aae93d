"""Weights of inference: cast, rounded and joined once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from lmsmith.generation.packed import (
    all_rows,
    is_multiplied,
    read_rows,
    rows_of_blocks,
    rows_of_panels,
)
from lmsmith.models.blocks import Block, FeedForward, GatedFeedForward
from lmsmith.models.interop.quantised import PackedTensor, TensorType

WeightKind = Literal["model", "int8"]

GROUP = 64
"""Weights of a row that share a scale, if the row is a multiple; itself a multiple of the kernels'
32."""


@dataclass(frozen=True)
class Weight:
    """A constant matrix, (outputs, inputs).

    Attributes:
        values: float32, bf16, or int8 to be multiplied by ``scales``; of a packed matrix a GGUF
            file's bytes, or its numbers of 4 or 8 bits in panels.
        scales: of int8, float32 (outputs, groups): one for each inputs / groups weights of a row;
            float16 of packed matrices in panels.
        bias: float32 (outputs,), or None.
        shape: outputs and inputs.
        in_panels: whether values and scales have the layout of the C++ kernels
            (native/panels.hpp), flat; else rows.
        for_many: the same in rows, for oneDNN's products of many rows.
        packing: a packed matrix's type in the file; None for others.
        minima: of packed matrices in panels, float16, where the type has them.
        steps: of packed matrices in panels, two int8 of each 32 inputs, where the type has them.
        rest: a matrix of the same inputs whose outputs follow, since it has another type.
        matrix: its addresses for the C++ kernels.
    """

    values: Tensor
    scales: Tensor | None
    bias: Tensor | None
    shape: tuple[int, int]
    in_panels: bool = False
    for_many: Weight | None = None
    packing: TensorType | None = None
    minima: Tensor | None = None
    steps: Tensor | None = None
    rest: Weight | None = None
    matrix: Any = None

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
        if self.packing is not None:
            return self.packing.block
        if self.scales is None:
            return inputs
        whole = -(-outputs // 16) * 16 if self.in_panels else outputs
        return inputs * whole // self.scales.numel()

    @property
    def bytes(self) -> int:
        """Size in memory."""
        tensors = (self.values, self.scales, self.bias, self.minima, self.steps)
        own = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        return own + (self.rest.bytes if self.rest else 0)

    @property
    def outputs(self) -> int:
        """Rows, with those of ``rest``."""
        return self.shape[0] + (self.rest.outputs if self.rest else 0)

    @property
    def packings(self) -> set[str]:
        """Names of the types of packed matrices."""
        own = {self.packing.name} if self.packing else set()
        return own | (self.rest.packings if self.rest else set())

    @functools.cached_property
    def laid_out(self) -> Tensor:
        """The values in oneDNN's layout, made at the first use."""
        return lay_out(self.values)

    def as_dtype(self, dtype: torch.dtype) -> Tensor:
        """The values multiplied out, in ``dtype``."""
        if self.rest is not None:
            own = replace(self, rest=None)
            return torch.cat([own.as_dtype(dtype), self.rest.as_dtype(dtype)])
        if self.packing is not None or (self.in_panels and self.scales is None):
            return all_rows(self.rows, self.shape, dtype)
        if self.scales is None:
            return self.values.to(dtype)
        outputs, groups = self.scales.shape
        grouped = self.values.float().view(outputs, groups, -1) * self.scales[..., None]
        return grouped.flatten(1).to(dtype)

    def rows(self, rows_n: Tensor) -> Tensor:
        """Rows by number, float32 (n, inputs), of a packed matrix, or of bf16 in panels."""
        outputs, inputs = self.shape
        if self.packing is None:
            pairs = rows_of_panels(self.values, outputs, rows_n)
            return pairs.view(torch.bfloat16)[:, :inputs].float()
        if not self.in_panels:
            return rows_of_blocks(self.packing, inputs, self.values)(rows_n)
        panels = (self.values, self.scales, self.minima, self.steps)
        return read_rows(self.packing, outputs, panels, rows_n)


def read_packed(tensors: Sequence[PackedTensor], bias: Tensor | None, dtype: torch.dtype) -> Weight:
    """Stack matrices of a file; those that the kernels multiply as they are stay packed, and the
    others are cast."""
    result: Weight | None = None
    end = sum(tensor.shape[0] for tensor in tensors)
    runs = groupby(tensors, lambda each: each.type if is_multiplied(each.type) else None)
    for kind, run in reversed([(kind, list(run)) for kind, run in runs]):
        shape = sum(each.shape[0] for each in run), run[0].shape[1]
        of_run = None if bias is None else bias[end - shape[0] : end].contiguous()
        end -= shape[0]
        parts = [each.read(dtype) if kind is None else each.data for each in run]
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        result = Weight(values, None, of_run, shape, packing=kind, rest=result)
    assert result is not None
    return result


def join_biases(biases: Sequence[Tensor | None]) -> Tensor | None:
    """One float32 vector, or None."""
    parts = [bias.detach().float() for bias in biases if bias is not None]
    return torch.cat(parts).contiguous() if parts else None


def read_weight(
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    dtype: torch.dtype,
    kind: WeightKind,
) -> Weight:
    """Stack matrices, cast or rounded."""
    bias = join_biases(biases)
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


def read_norm(norm: nn.LayerNorm | nn.RMSNorm) -> Norm:
    """A layer's norm as the kernels take it."""
    assert norm.eps is not None
    return Norm(norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None, norm.eps)


class BlockWeights:
    """Weights of a block; queries, keys and values are one matrix, gate and inner another.

    ``packed`` has the parts of layers whose weights stay as a file packs them, by name.
    """

    def __init__(
        self,
        block: Block,
        dtype: torch.dtype,
        kind: WeightKind,
        prepare: Callable[[Weight], Weight],
        packed: Mapping[str, Sequence[PackedTensor]],
    ) -> None:
        layer = block.feed_forward
        assert isinstance(layer, FeedForward | GatedFeedForward)
        self.attention_norm = read_norm(block.attention_norm)
        self.feed_forward_norm = read_norm(block.feed_forward_norm)
        gated = isinstance(layer, GatedFeedForward)

        def ready(*names: str) -> Weight:
            layers = [block.get_submodule(name) for name in names]
            biases = [cast(nn.Linear, each).bias for each in layers]
            if all(name in packed for name in names):
                tensors = [tensor for name in names for tensor in packed[name]]
                return prepare(read_packed(tensors, join_biases(biases), dtype))
            weights = [cast(nn.Linear, each).weight for each in layers]
            return prepare(read_weight(weights, biases, dtype, kind))

        self.query_key_value = ready("attention.query_key_value")
        self.output = ready("attention.output")
        inner = ["feed_forward.gate"] if gated else []
        self.inner = ready(*inner, "feed_forward.inner")
        self.feed_forward_output = ready("feed_forward.output")

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
