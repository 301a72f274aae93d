"""A CUDA graph, simulated: operations are recorded with their tensors, and repeated on the same.

As on a GPU, a repetition runs no Python: it computes the same operations again, from what their
tensors contain now, and writes each result where the first one was. A number that Python knew at
the recording stays what it was. What a GPU refuses while it records is refused here too: results
that the processor must read, shapes that depend on contents, tensors from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "lift_fresh", "_pin_memory")
SHAPES = ("nonzero", "masked_select", "unique", "_unique2")
WITH_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_")


class RecordedOperations:
    """A `decode_graphs.Recorder` that needs no GPU."""

    held_bytes = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        function()
        recording = _Recording()
        with recording:
            result = function()
        self.held_bytes += sum(each.nbytes for _, _, _, made in recording.all for each in made)

        def repeat() -> None:
            for operation, arguments, settings, made in recording.all:
                again = _tensors(operation(*arguments, **settings))
                for old, new in zip(made, again, strict=True):
                    if _address(old) != _address(new):  # else it is a view, or was changed in place
                        old.copy_(new)

        return repeat, result


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = _tensors((args, kwargs))
        if name in READS or name in SHAPES:
            raise RuntimeError(f"{name}: not permitted while recording")
        if name in WITH_INDICES and any(each.dtype == torch.bool for each in _tensors(args[1])):
            raise RuntimeError(f"{name} by bool: not permitted while recording")
        found = function(*args, **kwargs)
        made = _tensors(found)
        if len({each.device for each in (*given, *made) if each.dim()}) > 1:
            raise RuntimeError(f"{name} of two devices: not permitted while recording")
        self.all.append((function, args, kwargs, made))
        return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def _address(value: Tensor) -> int:
    """Where a tensor's numbers begin; those of the simulated device are in an inner one."""
    inner: Tensor = vars(value).get("inner", value)
    return inner.data_ptr()
