"""Modules without weights, for weights that are assigned to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialisation(TorchFunctionMode):
    """What `torch.nn.init` has leaves its tensor as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules made inside have shapes alone: their tensors are on the meta device.

    The device alone would do, but drawing initial weights there imports PyTorch's compiler, which
    takes three seconds.
    """
    with torch.device("meta"), _NoInitialisation():
        yield
