"""All blocks of a forward pass in one call, which saves small models Python's overhead."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from lmsmith.generation.adapters import MATRICES, AdapterWeights, Group
from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import LayerCache, PagedCache
from lmsmith.generation.native.operations import (
    FEW_ROWS,
    MAX_HEAD_WIDTH,
    Matrix,
    NativeKernels,
    address,
    fields,
)
from lmsmith.generation.weights import BlockWeights
from lmsmith.models.config import ModelConfig

_ACTIVATIONS = {"swiglu": 0, "gelu_tanh": 1}


def native_stack(
    kernels: TorchKernels, blocks: Sequence[BlockWeights], config: ModelConfig, dtype: torch.dtype
) -> NativeStack | None:
    """The blocks in one call, or None if an operation of theirs is not in C++."""
    possible = config.activation in _ACTIVATIONS and config.width_per_head <= MAX_HEAD_WIDTH
    possible = possible and config.norm_position == "pre" and dtype == torch.bfloat16
    if isinstance(kernels, NativeKernels) and possible and blocks:
        return NativeStack(kernels, blocks, config)
    return None


class NativeStack:
    """The blocks of a model whose norms go before its layers, with weights in bf16, int8 or packed.

    The results are, to the bit, those of its operations one by one.
    """

    def __init__(
        self, kernels: NativeKernels, blocks: Sequence[BlockWeights], config: ModelConfig
    ) -> None:
        self._run = kernels.library.lmsmith_stack
        self._config = config
        self._kept = blocks  # whose addresses follow
        self._blocks = (_Block * len(blocks))(*map(_block, blocks))
        self._most_rows = None if blocks[0].inner.for_many is None else FEW_ROWS
        self._adapters: dict[AdapterWeights, ctypes.Array[_Adapter]] = {}
        self._pages: tuple[weakref.ref[PagedCache], object, ctypes.Array[_Pages]] | None = None

    def takes(self, tokens: int) -> bool:
        """Whether so many are fastest here; matrix units (AMX) are PyTorch's."""
        return self._most_rows is None or tokens <= self._most_rows

    def __call__(
        self, x_nd: Tensor, places: Places, cache: PagedCache, groups: Sequence[Group] = ()
    ) -> Tensor:
        """The float32 states (n, width) after all blocks; the cache has room for the tokens."""
        config, (cosine, sine) = self._config, places.rotation or (None, None)
        x_nd = x_nd.contiguous()
        pages = self._pages_of(cache)  # held here: another thread's call may replace them
        addresses = ctypes.addressof(self._blocks), ctypes.addressof(pages)
        tensors = (cosine, sine, places.rows_n, places.positions_n, x_nd)
        of_groups = (_Group * len(groups))(*map(self._group, groups))
        rank = max((group.adapter.rank for group in groups), default=0)
        widths = (config.width, config.heads, config.resolved_kv_heads, config.width_per_head)
        arguments = _Stack(
            *(*addresses, *map(address, tensors), ctypes.addressof(of_groups)),
            *(len(self._blocks), len(x_nd), *widths),
            *(cache.page, _ACTIVATIONS[config.activation], len(groups), rank),
            self._kept[0].attention_norm.epsilon,
        )
        self._run(ctypes.byref(arguments), torch.get_num_threads())
        return x_nd

    def _group(self, group: Group) -> _Group:
        if group.adapter not in self._adapters:
            pairs = [layer.get(name) for layer in group.adapter.layers for name in MATRICES]
            found = [
                _Adapter(each.down.matrix, each.up.matrix) if each else _Adapter() for each in pairs
            ]
            self._adapters[group.adapter] = (_Adapter * len(pairs))(*found)
        adapters = ctypes.addressof(self._adapters[group.adapter])
        return _Group(adapters, group.first, group.end - group.first)

    def _pages_of(self, cache: PagedCache) -> ctypes.Array[_Pages]:
        """Addresses of the cache's layers; it moves them when it grows."""
        known, size = self._pages, (cache.pages, cache.rows)
        if known is None or known[0]() is not cache or known[1] != size:
            found = (_Pages * len(cache.layers))(*map(_pages, cache.layers))
            known = self._pages = (weakref.ref(cache), size, found)
        return known[2]


class _Block(ctypes.Structure):
    """`Block` in kernels.cpp; so are the others of their names."""

    _fields_ = (
        *fields("attention_norm attention_shift feed_forward_norm feed_forward_shift", ""),
        *((name, Matrix) for name in ("query_key_value", "output", "inner", "feed_forward_output")),
    )


class _Adapter(ctypes.Structure):
    _fields_ = (("down", Matrix), ("up", Matrix))


class _Group(ctypes.Structure):
    _fields_ = fields("adapters", "first tokens")


class _Pages(ctypes.Structure):
    _fields_ = fields("keys values table", "row_pages window")


class _Stack(ctypes.Structure):
    _fields_ = fields(
        "blocks pages cosine sine rows positions x groups",
        "count tokens width heads shared head_width page activation group_count rank",
        "epsilon",
    )


def _pages(layer: LayerCache) -> _Pages:
    tensors = (layer.keys, layer.values, layer.table)
    return _Pages(*map(address, tensors), layer.table.shape[1], layer.window)


def _block(block: BlockWeights) -> _Block:
    before, after = block.attention_norm, block.feed_forward_norm
    norms = (before.weight, before.shift, after.weight, after.shift)
    return _Block(*map(address, norms), *(each.matrix for each in block.matrices))
