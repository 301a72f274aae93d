"""Read safetensors: shapes first, so that nothing is made that the weights cannot fill."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import require_file
from lmsmith.core.json_text import signs_outside_strings

_FIX = "fetch it again; a run's is made again by `lmsmith run RECIPE --redo STAGE`"

MOST_TENSORS = 1 << 16
"""In a file; each takes memory, however small it is."""

MOST_DIMENSIONS = 8
"""Most dimensions of a tensor."""

_MOST_HEADER_BYTES = 100_000_000
"""The library's own limit."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name → shape of each tensor in a file."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a file; none of its numbers is read.

    Raises:
        UserError: it is missing or damaged.
    """
    with _reading(path):
        _refuse_long_header(path)
    with _reading(path), safe_open(path, framework="pt") as file:
        names = file.keys()
        if len(names) > MOST_TENSORS:
            raise UserError(f"{path}: more tensors than any model has", _FIX)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        if wrong := next((n for n, shape in shapes.items() if len(shape) > MOST_DIMENSIONS), None):
            raise UserError(f"{path}: {wrong} has {len(shapes[wrong]):,} dimensions", _FIX)
        return shapes


def _refuse_long_header(path: Path) -> None:
    """Refuse a header of more keys than tensors have, before the library makes objects of them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MOST_HEADER_BYTES, path.stat().st_size):
            return  # the library refuses it
        header = file.read(length)
    most = 4 * MOST_TENSORS
    if header.count(b":") > most and signs_outside_strings(header)[b":"] > most:
        raise UserError(f"{path}: more tensors than any model has", _FIX)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, in its own type, mapped into memory.

    Raises:
        UserError: it is missing or damaged.
    """
    read_shapes(path)
    with _reading(path):
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors


def require_weight(name: str, tensor: torch.Tensor, shape: tuple[int, ...], fix: str) -> None:
    """Refuse a tensor of another shape, or of a type that holds no weights."""
    if tuple(tensor.shape) != tuple(shape):
        raise UserError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}", fix)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name} is of the type {kind}", "take the model's unquantised weights")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    require_file(path)
    if not path.exists():
        raise UserError(f"{path} cannot be read as weights: there is no such file", _FIX)
    with refusing_damage(path, _FIX):
        try:
            yield
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read as weights ({error})", _FIX) from error


class Sized(Protocol):
    """Settings of a model that know its size."""

    @property
    def layers(self) -> int: ...

    @property
    def parameters(self) -> int: ...


def refuse_impossible_sizes(config: Sized, shapes: Shapes, where: str) -> None:
    """Refuse settings that are far from what the weights can have, before a model is made of them.

    Raises:
        UserError: the model has more layers than the file has tensors, or more than twice as many
            parameters as it has numbers. (Where a tensor is missing, its reader names it.)
    """
    numbers = sum(map(math.prod, shapes.values()))
    if config.layers > len(shapes) or config.parameters > 2 * numbers:
        raise UserError(
            f"{where}: the settings are of {config.layers:,} layers and {config.parameters:,} "
            f"parameters, and the weights are {numbers:,} numbers in {len(shapes):,} tensors",
            "the two are not of one model: fetch both again",
        )
