"""Models in parts: weights, gradients and optimiser divided among the processes (FSDP2).

What is trained is a twin of the model whose parameters are DTensors; the model itself gets its
weights when training is over, or a policy writes. Each block is a group of its own. Embedding, tied
head, final norm and scalar head are the root's: a parameter may not be tied across groups.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from lmsmith.device import processes_here
from lmsmith.models.adapters import has_adapters
from lmsmith.models.stack import Stack
from lmsmith.runs.stage_folder import describe_hardware
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.parallel import team

if TYPE_CHECKING:  # they take a second to import, which a run of one process does not need
    from torch.distributed.tensor import DTensor

STATE_BYTES = 16
"""Bytes of a float32 parameter's state: weight, gradient, and AdamW's two means."""

MOST_STATE = 0.5
"""Share of the memory that whole states may take; activations need the rest."""

Model = TypeVar("Model", bound=nn.Module)


def divided(machine: ResolvedMachine, *models: Model) -> list[Model]:
    """The models on the device; or, if ``machine.sharding`` wants it, twins of them in parts.

    ``auto`` does where the whole state of all takes over `MOST_STATE` of a process's memory. Models
    with adapters stay whole: what they train is small.
    """
    if team().count == 1 or machine.sharding == "off" or any(map(has_adapters, models)):
        return [machine.put(model) for model in models]
    size = sum(each.numel() for model in models for each in model.parameters())
    large = size * STATE_BYTES > MOST_STATE * own_memory(machine.place)
    if machine.sharding == "auto" and not large:
        return [machine.put(model) for model in models]
    return [twin_in_parts(model, machine.place, machine.dtype) for model in models]


def twin_in_parts(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """A copy of a model whose parameters are divided among the processes of the team.

    Args:
        dtype: of products. Blocks are gathered in it, so that no process keeps copies of their
            weights until the backward pass. Parts, sums of gradients, what passes between blocks
            and the root's group are float32: embedding, head and loss.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Autocast casts what products read; norms and the residual stream stay float32 under it.
    mixed = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    twin = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (team().count,))
    for body in [each for each in twin.modules() if isinstance(each, Stack)]:
        for block in body.blocks:
            fully_shard(block, mesh=mesh, mp_policy=mixed)
    fully_shard(twin, mesh=mesh)
    return twin.to(device)


def fetch(twin: Model, model: Model) -> Model:
    """The model with its twin's weights; every process must ask for it."""
    if twin is not model:
        model.load_state_dict({name: whole(value) for name, value in twin.state_dict().items()})
    return model


def own_memory(device: torch.device) -> float:
    """Bytes of memory of a process's device; the processor's is shared by its processes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return float(str(describe_hardware()["memory_bytes"])) / processes_here()


def in_parts(value: object) -> TypeGuard[DTensor]:
    """Whether a tensor is divided among the processes."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def whole(value: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it."""
    return value.full_tensor() if in_parts(value) else value


def a_part(state: Any) -> Tensor | None:
    """The first divided tensor in a nested state; None if all are whole."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return next((found for each in state if (found := a_part(each)) is not None), None)
    return state if in_parts(state) else None


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, in the form of ``like``."""
    if not in_parts(like) or in_parts(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placed = value.to(like.device_mesh.device_type)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def divided_as(state: Any, like: Any) -> Any:
    """A nested state whose whole tensors are divided where those of ``like`` are."""
    if isinstance(state, dict) and isinstance(like, dict):
        return {key: divided_as(value, like.get(key)) for key, value in state.items()}
    if isinstance(state, Tensor) and isinstance(like, Tensor):
        return divided_like(state, like)
    return state
