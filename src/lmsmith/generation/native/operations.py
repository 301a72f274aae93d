"""The operations of a forward pass in C++, built for a platform or compiled for this processor.

They differ from PyTorch's by rounding alone. They sum in an order that does not depend on the
number of rows, so that a row's result has the same bits whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import LayerCache
from lmsmith.generation.native.library import load_library
from lmsmith.generation.packed import new_panels
from lmsmith.generation.sampling import not_finite
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Mask
from lmsmith.generation.weights import Norm, Weight
from lmsmith.models.interop.quantised import MULTIPLIED

LANES = 16
"""Numbers of a register, in float32."""

MAX_HEAD_WIDTH = 512
"""Widest head of the attention kernel, which keeps a query on the stack."""


POINTER, INTEGER, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


def fields(pointers: str, integers: str, floats: str = "") -> list[tuple[str, Any]]:
    """Fields of a structure in C++, in this order, each name with its type."""
    kinds = ((POINTER, pointers), (INTEGER, integers), (FLOAT, floats))
    return [(name, kind) for kind, names in kinds for name in names.split()]


class _Attend(ctypes.Structure):
    """`Attend` in attention.hpp."""

    _fields_ = fields(
        "projected cosine sine keys values table rows positions mixed",
        "tokens heads shared width page row_pages window",
        "scale",
    )


class Matrix(ctypes.Structure):
    """`Matrix` in kernels.cpp."""

    _fields_ = fields("weight scales bias minima steps next", "inputs outputs group packing")


_TYPES = {"p": POINTER, "i": INTEGER, "q": ctypes.c_int64, "f": FLOAT}
_SIGNATURES = {
    "linear": "pppiii",
    "lay_out": "ppqqii",
    "pack": "pppppqqii",
    "rows": "pppi",
    "norm": "ppppiifiii",
    "gate": "ppiii",
    "gelu": "ppiii",
    "attend_bf16": "pi",
    "attend_float": "pi",
    "log_sums": "pppiiii",
    "draw": "pppppiififfi",
    "stack": "pi",
}
"""Arguments of each function in kernels.cpp."""

_RESULTS = {torch.float32: 0, torch.bfloat16: 1}
_ADDED = 2

FEW_ROWS = 8
"""Rows up to which reading bf16 weights bounds a product, and matrix units (AMX) gain nothing. A
processor with AMX multiplies more rows by oneDNN."""


class NativeKernels(TorchKernels):
    """The operations in C++, for bf16, int8 and packed weights; float32 ones are PyTorch's.

    Args:
        library: the compiled kernels.
        matrix_units: whether oneDNN's products of many rows are several times as fast here.
    """

    def __init__(self, library: ctypes.CDLL, *, matrix_units: bool = False) -> None:
        self.library = library
        self.matrix_units = matrix_units
        for name, codes in _SIGNATURES.items():
            function = getattr(library, f"lmsmith_{name}")
            function.argtypes = [_TYPES[code] for code in codes]
            function.restype = None

    def prepare(self, weight: Weight) -> Weight:
        if weight.values.dtype == torch.float32:
            return weight
        many = self.matrix_units and weight.scales is None and weight.packing is None
        for_many = weight if many and weight.rest is None else None
        return replace(self._in_panels(weight), for_many=for_many)

    def _in_panels(self, weight: Weight) -> Weight:
        rest = None if weight.rest is None else self._in_panels(weight.rest)
        if weight.packing is not None:
            values, scales, minima, steps = new_panels(weight.packing, weight.shape)
            tensors, kind = (weight.values, values, scales, minima, steps), weight.packing
            self._call("pack", tensors, *weight.shape, MULTIPLIED[kind.name])
            result = replace(weight, values=values, scales=scales, minima=minima, steps=steps)
        else:
            padded = F.pad(weight.values, (0, 1)) if weight.shape[1] % 2 else weight.values
            pairs = torch.int32 if padded.dtype == torch.bfloat16 else torch.int16
            of_groups = None if weight.scales is None else self._panels(weight.scales)
            result = replace(weight, values=self._panels(padded.view(pairs)), scales=of_groups)
        result = replace(result, in_panels=True, rest=rest)
        return replace(result, matrix=_matrix(result))

    def _call(self, name: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
        function = getattr(self.library, f"lmsmith_{name}")
        function(*map(address, tensors), *numbers, torch.get_num_threads())

    def _panels(self, matrix: Tensor) -> Tensor:
        """Its rows in panels (native/panels.hpp), flat."""
        rows, columns = matrix.shape
        result = torch.empty(-(-rows // LANES) * LANES * columns, dtype=matrix.dtype)
        matrix = matrix.contiguous()
        self._call("lay_out", (matrix, result), rows, columns, matrix.element_size())
        return result

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        if weight.for_many is not None and len(x_ni) > FEW_ROWS:
            return super().linear(x_ni, weight.for_many, dtype, add_to)
        if not weight.in_panels:
            return super().linear(x_ni, weight, dtype, add_to)
        x_ni = x_ni.contiguous()
        result = torch.empty(len(x_ni), weight.outputs, dtype=dtype) if add_to is None else add_to
        kind = _RESULTS[dtype] if add_to is None else _ADDED
        addresses = address(x_ni), ctypes.addressof(weight.matrix), address(result)
        self.library.lmsmith_linear(*addresses, len(x_ni), kind, torch.get_num_threads())
        return result

    def rows(self, weight: Weight, rows_n: Tensor) -> Tensor:
        if weight.packing is None or weight.matrix is None or weight.rest is not None:
            return super().rows(weight, rows_n)
        rows_n = rows_n.long().contiguous()
        result = torch.empty(len(rows_n), weight.shape[1])
        addresses = ctypes.addressof(weight.matrix), address(rows_n), address(result)
        self.library.lmsmith_rows(*addresses, len(rows_n))
        return result

    def norm(self, x_nd: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        x_nd, result = x_nd.contiguous(), torch.empty(x_nd.shape, dtype=dtype)
        tensors, centred = (x_nd, norm.weight, norm.shift, result), norm.shift is not None
        self._call("norm", tensors, *x_nd.shape, norm.epsilon, centred, _RESULTS[dtype])
        return result

    def gate(self, both_ni: Tensor) -> Tensor:
        if both_ni.dtype != torch.bfloat16:
            return super().gate(both_ni)
        rows, width = both_ni.shape[0], both_ni.shape[1] // 2
        result = torch.empty(rows, width, dtype=torch.bfloat16)
        self._call("gate", (both_ni, result), rows, width)
        return result

    def gelu(self, x_ni: Tensor) -> Tensor:
        if x_ni.dtype != torch.bfloat16:
            return super().gelu(x_ni)
        result = torch.empty_like(x_ni)
        self._call("gelu", (x_ni, result), *x_ni.shape)
        return result

    def attend(
        self, projected_nhk: Tensor, places: Places, cache: LayerCache, heads: int
    ) -> Tensor:
        count, all_heads, width = projected_nhk.shape
        if width > MAX_HEAD_WIDTH:
            return super().attend(projected_nhk, places, cache, heads)
        mixed_nd = torch.empty(count, heads * width, dtype=projected_nhk.dtype)
        keys, values, table = cache.keys, cache.values, cache.table
        tensors = (
            *(projected_nhk, *(places.rotation or (None, None)), keys, values, table),
            *(places.rows_n, places.positions_n, mixed_nd),
        )
        sizes = (count, heads, (all_heads - heads) // 2, width)
        pages = (cache.page, table.shape[1], cache.window)
        arguments = _Attend(*map(address, tensors), *sizes, *pages, width**-0.5)
        name = "attend_float" if projected_nhk.dtype == torch.float32 else "attend_bf16"
        getattr(self.library, f"lmsmith_{name}")(ctypes.byref(arguments), torch.get_num_threads())
        return mixed_nd

    def product_dtype(self, weight: Weight, rows: int) -> torch.dtype:
        if weight.for_many is not None and rows > FEW_ROWS:
            return torch.bfloat16
        return torch.float32

    def log_sums(self, logits_nv: Tensor) -> tuple[Tensor, Tensor]:
        logits_nv = logits_nv.contiguous()
        log_sum_n = torch.empty(len(logits_nv), dtype=torch.float32)
        best_n = torch.empty(len(logits_nv), dtype=torch.int64)
        tensors, kind = (logits_nv, log_sum_n, best_n), _RESULTS[logits_nv.dtype]
        self._call("log_sums", tensors, *logits_nv.shape, kind)
        return log_sum_n, best_n

    def draw(
        self,
        logits_bv: Tensor,
        settings: SamplingSettings,
        uniform_b: Tensor,
        mask: Mask | None = None,
    ) -> Tensor:
        if logits_bv.dtype != torch.float32:
            return super().draw(logits_bv, settings, uniform_b, mask)
        logits_bv, uniform_b = logits_bv.contiguous(), uniform_b.double().contiguous()
        tokens_b = torch.empty(len(logits_bv), dtype=torch.int64)
        masked = (None, None) if mask is None else (mask.forbidden_sv, mask.states_b)
        limits = (settings.temperature, settings.top_k, settings.top_p, settings.min_p)
        tensors = (logits_bv, uniform_b, *masked, tokens_b)
        self._call("draw", tensors, *logits_bv.shape, *limits)
        if int(tokens_b.min()) < 0:
            raise not_finite()
        return tokens_b


def _matrix(weight: Weight) -> Matrix:
    """Addresses of a weight in panels; it keeps the tensors."""
    tensors = (weight.values, weight.scales, weight.bias, weight.minima, weight.steps)
    following = None if weight.rest is None else ctypes.addressof(weight.rest.matrix)
    outputs, inputs = weight.shape
    packing = 0 if weight.packing is None else MULTIPLIED[weight.packing.name]
    return Matrix(*map(address, tensors), following, inputs, outputs, weight.group, packing)


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first number; None for none."""
    return None if tensor is None else tensor.data_ptr()


def best_kernels() -> TorchKernels:
    """Those in C++ where they are, else PyTorch's."""
    library = load_library()
    if library is None:
        return TorchKernels()
    return NativeKernels(library, matrix_units=torch.cpu._is_amx_tile_supported())
