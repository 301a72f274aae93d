"""Checkpoints of models in parts: each process writes and reads its own part of every tensor.

They go through torch.distributed.checkpoint and its safetensors storage: a file says where in the
whole tensor each of its parts begins. So any number of processes reads what another number wrote,
and each reads no more than it keeps. No file is pickled: the storage gets tensors alone, and writes
no metadata of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.core.files import disk_full_error, sha256_file
from lmsmith.training.parallel import gather, in_step, team
from lmsmith.training.sharding import in_parts

PARTS = "shard-*.safetensors"
"""Files of parts; the number that follows is that of the process, from 1."""

FILE_BYTES = 1 << 28
"""Bytes, about, of a file. The storage holds a file up to four times in memory as it writes."""


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write this process's parts of divided tensors; every process must ask for it.

    Returns:
        SHA-256 of the files of all processes, by name.

    Raises:
        UserError: the disk of a process is full, or the processes share no folder; in all of them.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    files = _files(tensors)
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with in_step("saving a checkpoint in parts"):
            save(dict(tensors), storage_writer=writer, planner=planner)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        problem = f"process {rank} could not write its part of a checkpoint: {cause!r}"
        raise disk_full_error(cause, folder) or RuntimeError(problem) from cause
    own = folder.glob(PARTS.replace("*", f"{team().rank + 1:05d}-*"))
    sums = gather({path.name: sha256_file(path) for path in sorted(own)})
    unseen = [
        r for r, each in enumerate(sums) if any(not (folder / name).exists() for name in each)
    ]
    # All look before any goes on: the first process renames the folder, or removes it if it fails.
    if missing := [rank for each in gather(unseen) for rank in each]:
        raise UserError(
            f"{folder.parent}: what process {missing[0]} wrote there is not there",
            "Give all machines one shared folder (--folder).",
        )
    return {name: value for each in sums for name, value in each.items()}


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number, from 1, of the file that takes a process's part of each tensor."""
    numbers, number, size = {}, 1, 0
    for name, value in tensors.items():
        own = math.ceil(value.nbytes / team().count)
        if size and size + own > FILE_BYTES:
            number, size = number + 1, 0
        numbers[name], size = number, size + own
    return numbers


def read_parts(
    folder: Path, besides: Collection[str], like: Tensor | None = None
) -> dict[str, Tensor]:
    """The divided tensors of a checkpoint; no process needs another to read them.

    Args:
        besides: names of tensors that are not divided there, and are not read.
        like: a divided tensor; this process reads its part of each in that form. None reads
            whole tensors.

    Raises:
        ValueError: a part is missing.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, found in reader.read_metadata().state_dict_metadata.items():
        if name in besides or not isinstance(found, TensorStorageMetadata):
            continue
        there = sum(chunk.sizes.numel() for chunk in found.chunks)
        if there != found.size.numel():  # else it would stay what the memory happens to hold
            raise ValueError(f"a part of {name} is missing")
        tensors[name] = _room(found.size, found.properties.dtype, like)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:
        _, (cause, _) = next(iter(error.failures.items()))
        raise ValueError(f"parts cannot be read ({cause})") from cause
    return tensors


def _room(shape: torch.Size, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """A tensor for what is read, on the device of ``like`` and divided in its way."""
    if not in_parts(like):
        return torch.empty(shape, dtype=dtype)
    from torch.distributed.tensor import empty

    mesh = like.device_mesh
    return empty(*shape, dtype=dtype, device_mesh=mesh, placements=like.placements)
