"""Checkpoints: everything a training loop is, written atomically, checked when read.

The first process writes ``tensors.safetensors`` and ``state.json``. Of a model in parts each
process writes its own part beside them (`training.checkpoint_parts`). The folder gets its name, and
counts, once all is written and ``checksums.json`` has the SHA-256 of every file.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_folder, read_json, sha256_file, write_json
from lmsmith.device import HOST
from lmsmith.training.checkpoint_parts import PARTS, read_parts, write_parts
from lmsmith.training.parallel import gather, team
from lmsmith.training.sharding import in_parts

TENSORS = "tensors.safetensors"
SCALARS = "state.json"
CHECKSUMS = "checksums.json"
TENSOR_FILES = "*.safetensors"
"""Files that the storage of parts reads, whatever they are called."""


def flatten_state(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a nested state into a JSON tree and its tensors, named by their place in it.

    Keys keep their type (optimisers number their parameters), and tuples and lists theirs.
    """
    tensors: dict[str, torch.Tensor] = {}

    def encode(value: Any, place: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[place] = value.detach()
            return {"tensor": place}
        if isinstance(value, dict):
            return {"dict": [[k, encode(v, f"{place}/{k!r}")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            items = [encode(item, f"{place}/{index}") for index, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}  # JSON has neither NaN nor infinity
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {place})")

    return encode(state, ""), tensors


def restore_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `flatten_state`."""
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: restore_state(value, tensors) for key, value in content}
    if kind == "list":
        return [restore_state(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(restore_state(item, tensors) for item in content)
    return float(content) if kind == "float" else content


class Checkpoints:
    """A folder of checkpoints ``step-00000123/``, the newest few kept.

    Args:
        keep: how many to keep; at least two, so that a damaged one has another before it.
        say: gets a sentence about each damaged checkpoint.
        like: a tensor of the model in parts that reads them; None if it is whole.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        say: Callable[[str], object] = lambda text: None,
        like: torch.Tensor | None = None,
    ) -> None:
        self.folder = folder
        self.keep = max(2, keep)
        self.say = say
        self.like = like
        self._found: tuple[int, dict[str, Any]] | None = None

    def saved_steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first, damaged ones included."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d{8})", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after ``step`` steps; drop later ones (damaged) and the oldest.

        Every process calls it. The first writes; the others write their parts, if there are any.
        """
        tree, tensors = flatten_state(state)
        parts = {name: value for name, value in tensors.items() if in_parts(value)}
        if not team().leads:
            if parts:
                write_parts(self.folder / gather("")[0], parts)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self.path(step)) as folder:
            whole = {n: v.to(HOST).contiguous() for n, v in tensors.items() if n not in parts}
            save_file(whole, folder / TENSORS)
            write_json(folder / SCALARS, {"step": step, "state": tree})
            sums = {name: sha256_file(folder / name) for name in (TENSORS, SCALARS)}
            if parts:
                gather(folder.name)
                sums |= write_parts(folder, parts)
            write_json(folder / CHECKSUMS, sums)
        steps = self.saved_steps()
        later = [other for other in steps if other > step]
        for old in [*later, *steps[: -self.keep - len(later)]]:
            shutil.rmtree(self.path(old), ignore_errors=True)

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (steps done, state); None if there is none."""
        return self.load(self.latest())

    def latest(self) -> int:
        """The step of the newest whole checkpoint; −1 if there is none. Damaged ones are named."""
        steps = self.saved_steps()
        for step in reversed(steps):
            if not (problem := self.problem(step)):
                try:
                    with refusing_damage(self.path(step)):
                        self._found = step, self._read(step)
                        return step
                except UserError as error:
                    problem = error.problem
            instead = "starting from step 0" if step == steps[0] else "using the one before it"
            self.say(f"checkpoint {self.path(step).name} is damaged ({problem}); {instead}")
        return -1

    def load(self, step: int) -> tuple[int, dict[str, Any]] | None:
        """The step and its state; None if the step is −1."""
        if step < 0:
            return None
        found, self._found = self._found, None
        return found if found is not None and found[0] == step else (step, self._read(step))

    def _read(self, step: int) -> dict[str, Any]:
        folder = self.path(step)
        scalars: Any = read_json(folder / SCALARS)
        try:
            tensors = load_file(folder / TENSORS)
            if any(folder.glob(PARTS)):
                tensors |= read_parts(folder, set(tensors), self.like)
        except SafetensorError as error:  # no ValueError
            raise ValueError(error) from error
        state: dict[str, Any] = restore_state(scalars["state"], tensors)
        return state

    def problem(self, step: int) -> str:
        """The damage of a checkpoint, in words; empty if it is whole."""
        folder = self.path(step)
        try:
            sums: Any = read_json(folder / CHECKSUMS)
            if more := sorted({path.name for path in folder.glob(TENSOR_FILES)} - set(sums)):
                return f"{more[0]} is not one of its files: remove it"
            for name in dict.fromkeys((TENSORS, SCALARS, *sums)):
                if sha256_file(folder / name) != sums[name]:
                    return f"{name} does not match its checksum"
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return ""
