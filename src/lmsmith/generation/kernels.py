"""What a step of generation is made of, twice: in C++, and in PyTorch where none can be compiled.

Both give the same results but for rounding. The C++ ones sum in an order that does not depend on
the number of rows, so that a row's result is the same to the bit whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.generation.cache import PAGE, LayerCache
from lmsmith.generation.native.compile import load_library
from lmsmith.generation.onednn import lay_out, onednn_linear
from lmsmith.models.positions import Rotation, rotate

MAX_HEAD_WIDTH = 512
"""Of the C++ attention, which keeps a query on the stack."""


@dataclass(frozen=True)
class Weight:
    """A matrix that is only read, (outputs, inputs).

    Attributes:
        values: float32, bf16, or int8, which ``scales`` times and rounded to bf16 are the weights.
        scales: of int8, float32 (outputs, groups): one for each inputs / groups weights of a row.
        bias: float32 (outputs,), or None.
    """

    values: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

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


@dataclass(frozen=True)
class Places:
    """Where the n tokens that are read together stand.

    Attributes:
        rows_n: row of the cache of each, int32.
        positions_n: its position in its row, int32; a row's tokens come one after the other.
        spans: (row, first position, tokens) of each row, in the same order.
    """

    rows_n: Tensor
    positions_n: Tensor
    spans: tuple[tuple[int, int, int], ...]


class Kernels(Protocol):
    """The operations; n counts tokens."""

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        """x Wᵀ + b, in ``dtype``; or added to the float32 ``add_to`` once it is rounded."""

    def norm(
        self,
        x_nd: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """RMSNorm, or LayerNorm where there is a shift; float32 in, ``dtype`` out."""

    def gate(self, both_ni: Tensor) -> Tensor:
        """SwiGLU's silu(gate) ∘ inner, where ``both_ni`` holds gate and inner side by side."""

    def attend(
        self,
        projected_nhk: Tensor,
        places: Places,
        cache: LayerCache,
        heads: int,
        rotation: Rotation | None,
    ) -> Tensor:
        """Keep the tokens' keys and values; then softmax(QKᵀ/√d_k)V over those before each.

        Args:
            projected_nhk: queries, keys and values, (n, heads + 2 × shared heads, head_width), in
                the cache's type, not turned yet.
            places: rows and positions; the cache has pages for them.
            cache: of this layer.
            heads: of queries.
            rotation: cosines and sines (n, head_width / 2), or None.

        Returns:
            (n, heads × head_width).
        """


class TorchKernels:
    """The operations in PyTorch."""

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        bias = None if weight.bias is None else weight.bias.to(x_ni.dtype)
        onednn = onednn_linear() if weight.values.dtype == torch.bfloat16 else None
        if onednn is None:
            result = F.linear(x_ni, weight.as_dtype(x_ni.dtype), bias)
        else:
            result = onednn(x_ni, weight.laid_out, bias, "none", [], "")
        return result.to(dtype) if add_to is None else add_to.add_(result)

    def norm(
        self,
        x_nd: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Tensor:
        if shift is None:
            return F.rms_norm(x_nd, weight.shape, weight, epsilon).to(dtype)
        return F.layer_norm(x_nd, weight.shape, weight, shift, epsilon).to(dtype)

    def gate(self, both_ni: Tensor) -> Tensor:
        gate_ni, inner_ni = both_ni.chunk(2, dim=1)
        return F.silu(gate_ni) * inner_ni

    def attend(
        self,
        projected_nhk: Tensor,
        places: Places,
        cache: LayerCache,
        heads: int,
        rotation: Rotation | None,
    ) -> Tensor:
        query_nhk, key_nhk, value_nhk = split_heads(projected_nhk, heads, rotation)
        cache.store(places.rows_n, places.positions_n, key_nhk, value_nhk)
        mixed, at = [], 0
        for row, start, count in places.spans:
            mixed.append(attend_span(query_nhk[at : at + count], cache, row, start))
            at += count
        return torch.cat(mixed)


def split_heads(
    projected_nhk: Tensor, heads: int, rotation: Rotation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (n, heads, head_width), keys and values, the first two turned."""
    shared = (projected_nhk.shape[1] - heads) // 2
    query, key, value = torch.split(projected_nhk, [heads, shared, shared], dim=1)
    if rotation is not None:
        by_head = rotation[0][:, None], rotation[1][:, None]
        query, key = rotate(query, by_head), rotate(key, by_head)
    return query, key, value


def attend_span(query_nhk: Tensor, cache: LayerCache, row: int, start: int) -> Tensor:
    """Attention of one row's queries, whose first position is ``start``; (n, heads × width)."""
    count, heads, _ = query_nhk.shape
    first = max(0, start - cache.window + 1) if cache.window else 0
    key_hsk, value_hsk = cache.read(row, first, start + count)
    mask_ns = None  # plainly causal where the span is all there is, and its band reaches it all
    if start or (cache.window and count > cache.window):
        seen_s = torch.arange(first, start + count)
        place_n1 = torch.arange(start, start + count)[:, None]
        mask_ns = seen_s <= place_n1
        if cache.window:
            mask_ns &= seen_s > place_n1 - cache.window
    group = heads // key_hsk.shape[0]
    mixed_hnk = F.scaled_dot_product_attention(
        query_nhk.transpose(0, 1)[None],
        key_hsk.repeat_interleave(group, dim=0)[None],
        value_hsk.repeat_interleave(group, dim=0)[None],
        attn_mask=mask_ns,
        is_causal=mask_ns is None,
    )[0]
    return mixed_hnk.transpose(0, 1).flatten(1)


class _Attend(ctypes.Structure):
    """`Attend` in kernels.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "projected", "cosine", "sine", "keys", "values", "table", "rows", "positions",
            "mixed"
        )),
        *((name, ctypes.c_int) for name in (
            "tokens", "heads", "shared", "width", "page", "row_pages", "window",
        )),
        ("scale", ctypes.c_float),
    )  # fmt: skip


_RESULTS = {torch.float32: 0, torch.bfloat16: 1}
_ADDED = 2

FEW_ROWS = 8
"""Rows up to which a product with bf16 weights is bound by reading them, and matrix units (AMX)
gain nothing. More rows leave the C++ kernel on a processor that has them."""


class NativeKernels(TorchKernels):
    """The operations in C++, for bf16 and int8 weights; float32 ones are PyTorch's.

    Args:
        library: the compiled kernels.
        matrix_units: whether oneDNN's products of many rows are several times as fast here.
    """

    def __init__(self, library: ctypes.CDLL, *, matrix_units: bool = False) -> None:
        self._matrix_units = matrix_units
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._linear = library.lmsmith_linear
        self._linear.argtypes = [pointer] * 5 + [integer] * 6
        self._norm = library.lmsmith_norm
        self._norm.argtypes = [pointer] * 4 + [integer] * 2 + [ctypes.c_float] + [integer] * 3
        self._gate = library.lmsmith_gate
        self._gate.argtypes = [pointer] * 2 + [integer] * 3
        self._attend = {
            torch.bfloat16: library.lmsmith_attend_bf16,
            torch.float32: library.lmsmith_attend_float,
        }
        for function in (self._linear, self._norm, self._gate, *self._attend.values()):
            function.restype = None

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        many = self._matrix_units and weight.scales is None and len(x_ni) > FEW_ROWS
        if many or weight.values.dtype == torch.float32:
            return super().linear(x_ni, weight, dtype, add_to)
        x_ni = x_ni.contiguous()
        rows, inputs = x_ni.shape
        outputs = weight.values.shape[0]
        result = torch.empty(rows, outputs, dtype=dtype) if add_to is None else add_to
        scales, bias = weight.scales, weight.bias
        self._linear(
            x_ni.data_ptr(),
            weight.values.data_ptr(),
            None if scales is None else scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            result.data_ptr(),
            rows,
            inputs,
            outputs,
            1 if scales is None else inputs // scales.shape[1],
            _RESULTS[dtype] if add_to is None else _ADDED,
            torch.get_num_threads(),
        )
        return result

    def norm(
        self,
        x_nd: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Tensor:
        result = torch.empty(x_nd.shape, dtype=dtype)
        self._norm(
            x_nd.data_ptr(),
            weight.data_ptr(),
            None if shift is None else shift.data_ptr(),
            result.data_ptr(),
            *x_nd.shape,
            epsilon,
            shift is not None,
            _RESULTS[dtype],
            torch.get_num_threads(),
        )
        return result

    def gate(self, both_ni: Tensor) -> Tensor:
        if both_ni.dtype != torch.bfloat16:
            return super().gate(both_ni)
        rows, width = both_ni.shape[0], both_ni.shape[1] // 2
        result = torch.empty(rows, width, dtype=torch.bfloat16)
        threads = torch.get_num_threads()
        self._gate(both_ni.data_ptr(), result.data_ptr(), rows, width, threads)
        return result

    def attend(
        self,
        projected_nhk: Tensor,
        places: Places,
        cache: LayerCache,
        heads: int,
        rotation: Rotation | None,
    ) -> Tensor:
        count, all_heads, width = projected_nhk.shape
        if width > MAX_HEAD_WIDTH:
            return super().attend(projected_nhk, places, cache, heads, rotation)
        table, threads = cache.table, torch.get_num_threads()
        mixed_nd = torch.empty(count, heads * width, dtype=projected_nhk.dtype)
        cosine, sine = rotation or (None, None)
        arguments = _Attend(
            projected=projected_nhk.data_ptr(),
            cosine=None if cosine is None else cosine.data_ptr(),
            sine=None if sine is None else sine.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            table=table.data_ptr(),
            rows=places.rows_n.data_ptr(),
            positions=places.positions_n.data_ptr(),
            mixed=mixed_nd.data_ptr(),
            tokens=count,
            heads=heads,
            shared=(all_heads - heads) // 2,
            width=width,
            page=PAGE,
            row_pages=table.shape[1],
            window=cache.window,
            scale=width**-0.5,
        )
        self._attend[projected_nhk.dtype](ctypes.byref(arguments), threads)
        return mixed_nd


def best_kernels() -> Kernels:
    """Those in C++ where they can be had."""
    library = load_library()
    if library is None:
        return TorchKernels()
    return NativeKernels(library, matrix_units=torch.cpu._is_amx_tile_supported())
