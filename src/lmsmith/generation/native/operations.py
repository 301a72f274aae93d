"""The operations of a step in C++.

They give what PyTorch's do but for rounding. They sum in an order that does not depend on the
number of rows, so that a row's result is the same to the bit whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import LayerCache
from lmsmith.generation.native.compile import load_library
from lmsmith.generation.sampling import check_finite
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Mask
from lmsmith.generation.weights import Norm, Weight
from lmsmith.models.positions import Rotation

LANES = 16
"""Numbers of a register, in float32."""

MAX_HEAD_WIDTH = 512
"""Widest head of the attention kernel, which keeps a query on the stack."""


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
        self.library = library
        self.matrix_units = matrix_units
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._linear = library.lmsmith_linear
        self._linear.argtypes = [pointer] * 5 + [integer] * 7
        self._lay_out = library.lmsmith_lay_out
        self._lay_out.argtypes = [pointer] * 2 + [ctypes.c_int64] * 2 + [integer] * 2
        self._has_panels = bool(library.lmsmith_has_panels())
        self._draw = library.lmsmith_draw
        self._draw.argtypes = (
            [pointer] * 5
            + [integer] * 2
            + [*(ctypes.c_float, integer, ctypes.c_float, ctypes.c_float, integer)]
        )
        self._log_sums = library.lmsmith_log_sums
        self._log_sums.argtypes = [pointer] * 3 + [integer] * 4
        self._norm = library.lmsmith_norm
        self._norm.argtypes = [pointer] * 4 + [integer] * 2 + [ctypes.c_float] + [integer] * 3
        self._gate = library.lmsmith_gate
        self._gelu = library.lmsmith_gelu
        self._gate.argtypes = self._gelu.argtypes = [pointer] * 2 + [integer] * 3
        self._attend = {
            torch.bfloat16: library.lmsmith_attend_bf16,
            torch.float32: library.lmsmith_attend_float,
        }
        functions = (self._linear, self._lay_out, self._norm, self._gate, self._gelu, self._draw)
        for function in (*functions, self._log_sums, *self._attend.values()):
            function.restype = None

    def prepare(self, weight: Weight) -> Weight:
        if not self._has_panels or weight.values.dtype == torch.float32:
            return weight
        values = weight.values
        if weight.shape[1] % 2:
            values = F.pad(values, (0, 1))
        pairs = torch.int32 if values.dtype == torch.bfloat16 else torch.int16
        return replace(
            weight,
            values=self._panels(values.view(pairs)),
            scales=None if weight.scales is None else self._panels(weight.scales),
            in_panels=True,
            for_many=weight if self.matrix_units and weight.scales is None else None,
        )

    def _panels(self, matrix: Tensor) -> Tensor:
        """Its rows in panels (native/panels.hpp), flat."""
        rows, columns = matrix.shape
        result = torch.empty(-(-rows // LANES) * LANES * columns, dtype=matrix.dtype)
        matrix = matrix.contiguous()
        self._lay_out(
            matrix.data_ptr(),
            result.data_ptr(),
            rows,
            columns,
            matrix.element_size(),
            torch.get_num_threads(),
        )
        return result

    def linear(
        self, x_ni: Tensor, weight: Weight, dtype: torch.dtype, add_to: Tensor | None = None
    ) -> Tensor:
        if weight.for_many is not None and len(x_ni) > FEW_ROWS:
            weight = weight.for_many
            return super().linear(x_ni, weight, dtype, add_to)
        if weight.values.dtype == torch.float32:
            return super().linear(x_ni, weight, dtype, add_to)
        x_ni = x_ni.contiguous()
        rows, inputs = x_ni.shape
        outputs = weight.shape[0]
        result = torch.empty(rows, outputs, dtype=dtype) if add_to is None else add_to
        self._linear(
            x_ni.data_ptr(),
            weight.values.data_ptr(),
            address(weight.scales),
            address(weight.bias),
            result.data_ptr(),
            rows,
            inputs,
            outputs,
            weight.group,
            _RESULTS[dtype] if add_to is None else _ADDED,
            weight.in_panels,
            torch.get_num_threads(),
        )
        return result

    def norm(self, x_nd: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        result = torch.empty(x_nd.shape, dtype=dtype)
        self._norm(
            x_nd.data_ptr(),
            norm.weight.data_ptr(),
            address(norm.shift),
            result.data_ptr(),
            *x_nd.shape,
            norm.epsilon,
            norm.shift is not None,
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

    def gelu(self, x_ni: Tensor) -> Tensor:
        if x_ni.dtype != torch.bfloat16:
            return super().gelu(x_ni)
        result = torch.empty_like(x_ni)
        self._gelu(x_ni.data_ptr(), result.data_ptr(), *x_ni.shape, torch.get_num_threads())
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
            cosine=address(cosine),
            sine=address(sine),
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
            page=cache.page,
            row_pages=table.shape[1],
            window=cache.window,
            scale=width**-0.5,
        )
        self._attend[projected_nhk.dtype](ctypes.byref(arguments), threads)
        return mixed_nd

    def product_dtype(self, weight: Weight, rows: int) -> torch.dtype:
        if weight.for_many is not None and rows > FEW_ROWS:
            return torch.bfloat16
        return torch.float32

    def log_sums(self, logits_nv: Tensor) -> tuple[Tensor, Tensor]:
        logits_nv = logits_nv.contiguous()
        log_sum_n = torch.empty(len(logits_nv), dtype=torch.float32)
        best_n = torch.empty(len(logits_nv), dtype=torch.int64)
        self._log_sums(
            logits_nv.data_ptr(),
            log_sum_n.data_ptr(),
            best_n.data_ptr(),
            *logits_nv.shape,
            _RESULTS[logits_nv.dtype],
            torch.get_num_threads(),
        )
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
        check_finite(logits_bv)
        logits_bv, uniform_b = logits_bv.contiguous(), uniform_b.double().contiguous()
        tokens_b = torch.empty(len(logits_bv), dtype=torch.int64)
        self._draw(
            logits_bv.data_ptr(),
            uniform_b.data_ptr(),
            None if mask is None else mask.forbidden_sv.data_ptr(),
            None if mask is None else mask.states_b.data_ptr(),
            tokens_b.data_ptr(),
            *logits_bv.shape,
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            torch.get_num_threads(),
        )
        return tokens_b


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first number; None for none."""
    return None if tensor is None else tensor.data_ptr()


def best_kernels() -> TorchKernels:
    """Those in C++ where they can be compiled."""
    library = load_library()
    if library is None:
        return TorchKernels()
    return NativeKernels(library, matrix_units=torch.cpu._is_amx_tile_supported())
