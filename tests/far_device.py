"""A second device, simulated: its tensors are computed by the processor, and never mix with others.

PyTorch lets Python be the backend of the device ``far``. A tensor on it wraps one of the processor;
an operation on it works on the wrapped ones. As on a GPU, an operation on tensors of two devices is
an error, unless it copies, one is a number, or the processor's is an index.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "far"


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor) -> None:
        assert torch.equal(state, torch.zeros(1, dtype=torch.uint8))


@functools.cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


class Far(torch.Tensor):
    """A tensor on the device."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return _compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor on another device has no numpy array")

    def __repr__(self) -> str:
        return f"Far({self.inner})"


def _compute(function: Any, args: Any, kwargs: Any) -> Any:
    leaves: list[Any] = []
    near_args, near_kwargs = _near(args, leaves), _near(kwargs, leaves)
    far = [each for each in leaves if isinstance(each, Far)]
    is_far = bool(far)
    if kwargs.get("device") is not None:
        is_far = torch.device(kwargs["device"]).type == NAME
        if is_far:
            near_kwargs["device"] = torch.device("cpu")
    elif far:
        _refuse_mixture(str(function), leaves)
    found = function(*near_args, **near_kwargs)
    if function in (torch.ops.aten.copy_.default, torch.ops.aten.set_.source_Tensor):
        return args[0]
    return _wrapped(found, {id(each.inner): each for each in far}) if is_far else found


def _near(value: Any, leaves: list[Any]) -> Any:
    """What the processor's function takes; the tensors are added to ``leaves``."""
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return value.inner if isinstance(value, Far) else value
    if isinstance(value, list | tuple):
        return type(value)([_near(each, leaves) for each in value])
    if isinstance(value, dict):
        return {key: _near(each, leaves) for key, each in value.items()}
    return value


def _wrapped(value: Any, known: dict[int, Far]) -> Any:
    if isinstance(value, torch.Tensor):
        return known[id(value)] if id(value) in known else Far(value)
    if isinstance(value, list | tuple):
        return type(value)([_wrapped(each, known) for each in value])
    return value


def _refuse_mixture(name: str, leaves: list[Any]) -> None:
    near = [
        each
        for each in leaves
        if isinstance(each, torch.Tensor) and not isinstance(each, Far) and each.dim()
    ]
    if name.startswith("aten.index") and near:
        near = [each for each in near if each.is_floating_point()]
    if near and not name.startswith("aten.copy_"):
        raise RuntimeError(f"{name}: tensors of two devices")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return _compute(function, args, kwargs or {})


@contextlib.contextmanager
def far_away() -> Iterator[torch.device]:
    """Inside, there is the device, and ``machine.device = "auto"`` takes it."""
    _register()
    device = torch.device(NAME, 0)
    with pytest.MonkeyPatch.context() as patch, _Mode():
        for module in ("lmsmith.device", "lmsmith.training.machine", "lmsmith.training.loop"):
            patch.setattr(f"{module}.choose_device", lambda name: device)
        # Its products have the size that tells a GPU's peak: here they would take a minute.
        peak = functools.cache(lambda precision, device: 1e9)
        patch.setattr("lmsmith.training.machine.measure_matrix_peak", peak)
        make = torch.tensor  # which fills a tensor on the device past the mode

        def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
            made = make(data, **options)
            return made if device is None else made.to(device)

        patch.setattr(torch, "tensor", tensor)
        yield device
