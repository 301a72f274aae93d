"""Memory of a training step before it runs: the step itself, traced on tensors without numbers.

The model's own code runs forward and backward on PyTorch's fake tensors, which have shapes alone.
Every tensor that it makes and drops is noted, so the greatest sum at any moment is known by kind;
and every operation that computes is counted.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lmsmith.device import HOST, autocast
from lmsmith.models.attention import packed_mask
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training.losses import linear_cross_entropy_sum

WEIGHT_BYTES = 4
"""Weights, gradients and optimiser are float32; products alone are bf16."""

PREFETCHED = 2
"""Blocks whose weights are whole at once where processes divide them: one computes, one comes.

They are whole in the products' type; the root's group (embedding, head) is float32. A gradient is
whole in the type of its weight, and in float32 while it is summed."""


FEW_LAYERS = 3
"""Layers from which on the fullest moment of a step stays the same."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the fullest moment of a training step.

    Attributes:
        weights, gradients, optimiser: of what is trained, this device's part of it.
        frozen: models that are only read.
        gathered: weights and gradients of blocks that are whole for a moment.
        copies: bf16 copies of weights that products read and the backward pass needs.
        activations: what the backward pass needs of the forward pass, and passing results.
        best: a copy of the weights that did best on held-out text.
        cache: keys and values of texts that are written.
    """

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    frozen: int = 0
    gathered: int = 0
    copies: int = 0
    activations: int = 0
    best: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class Step:
    """What a training step computes on one device.

    Attributes:
        config: the decoder's shape.
        rows, length: of a micro batch, in tokens; ``passes`` of them follow each other, and from
            the second one on gradients are added to those that are there.
        dtype: of matrix products.
        checkpointed: whether blocks compute their activations again.
        muon: whether the blocks' matrices have Muon's one state, and not AdamW's two.
        packed: whether rows hold several documents, which a mask keeps apart.
    """

    config: ModelConfig
    rows: int
    length: int
    passes: int = 1
    dtype: torch.dtype = torch.bfloat16
    checkpointed: bool = False
    muon: bool = False
    packed: bool = True


def step_memory(step: Step, devices: int = 1) -> StepMemory:
    """Memory of a step of one model.

    Args:
        devices: how many divide weights, gradients and optimiser among them (FSDP2); 1: none do.
    """
    found = StepMemory(**_whole_step(step, devices)[0])
    return found if devices == 1 else replace(found, gathered=gathered_bytes(step))


def gathered_bytes(step: Step) -> int:
    """Bytes of weights and gradients that are whole for a moment where devices divide them."""
    config, size = step.config, step.dtype.itemsize
    body = config.block_parameters
    root = config.parameters - body * config.layers
    summed = max(2 * WEIGHT_BYTES * root, (size + WEIGHT_BYTES) * body)
    return WEIGHT_BYTES * root + PREFETCHED * size * body + summed


def step_operations(step: Step, devices: int = 1) -> int:
    """Operations that the forward and backward passes of a step start on a device.

    A GPU's kernels are started one by one, unless blocks are compiled. Views are not counted.
    """
    return _whole_step(step, devices)[1]


def _whole_step(step: Step, devices: int) -> tuple[dict[str, int], int]:
    """A device's memory but for what is gathered, and the operations of all passes.

    Layers repeat, so that few of many are traced: three or more, since with fewer the fullest
    moment may be another one.
    """
    layers, period = step.config.layers, len(step.config.attention_pattern)
    few = period * -(-FEW_LAYERS // period)
    more = few + period
    if layers <= more or (layers - few) % period:
        memory, operations = _computed(step, devices)
        return memory.by_kind(), operations
    (one, first), (other, second) = (
        _computed(replace(step, config=replace(step.config, layers=n)), devices)
        for n in (few, more)
    )
    times = (layers - few) // period
    sizes, wider = one.by_kind(), other.by_kind()
    whole = {kind: size + times * (wider[kind] - size) for kind, size in sizes.items()}
    return whole, first + times * (second - first)


def _computed(step: Step, devices: int) -> tuple[StepMemory, int]:
    trace = _traced(step, devices > 1)
    states = 2 * trace.numbers - (trace.matrices if step.muon else 0)
    memory = replace(
        trace.fullest(devices),
        weights=_part(trace.numbers, devices),
        optimiser=_part(states, devices),
        best=_part(trace.numbers, devices),
    )
    return memory, trace.operations


@dataclass(frozen=True)
class _Trace:
    """What the passes of a step make and drop.

    Attributes:
        events: (number, bytes made, or dropped if negative) of tensors, in order.
        copies: numbers of copies of weights.
        gradients: number → how many numbers it has, of the weights' after the last pass.
        operations: those that make or change a tensor.
        numbers, matrices: of all weights, and of those of the blocks' matrices.
    """

    events: list[tuple[int, int]]
    copies: set[int]
    gradients: dict[int, int]
    operations: int
    numbers: int
    matrices: int

    def fullest(self, devices: int) -> StepMemory:
        """Gradients, copies and activations at the fullest moment, where a device keeps its part
        of the gradients."""
        kept = {number: _part(count, devices) for number, count in self.gradients.items()}
        now = dict.fromkeys(("gradients", "copies", "activations"), 0)
        best, most = dict(now), 0
        for number, size in self.events:
            if number in kept:
                now["gradients"] += kept[number] if size > 0 else -kept[number]
            else:
                now["copies" if number in self.copies else "activations"] += size
            if (total := sum(now.values())) > most:
                best, most = dict(now), total
        return StepMemory(**best)


@functools.cache
def _traced(step: Step, gathered: bool) -> _Trace:
    """The last forward and backward pass of a step, on tensors without numbers.

    No earlier one takes more, since it finds fewer gradients.

    Args:
        gathered: whether the blocks' weights are of the products' type, as FSDP2 gathers them.
    """
    with FakeTensorMode():
        decoder = Decoder(step.config)
        decoder.checkpoint_activations = step.checkpointed
        if gathered:
            _gather(decoder.blocks, step.dtype)
        tracker = _Tracker(list(decoder.parameters()))
        tokens_bt = torch.zeros(step.rows, step.length, dtype=torch.long)
        with tracker:
            if step.passes > 1:
                for each in decoder.parameters():
                    each.grad = torch.zeros_like(each)
                tracker.operations = 0
            mask_bts = packed_mask(tokens_bt) if step.packed else None
            with autocast(HOST, step.dtype, keeps_copies=False):
                hidden_btd = decoder(tokens_bt, None, mask_bts)
                weight = decoder.unembedding_weight
                loss = linear_cross_entropy_sum(hidden_btd, weight, tokens_bt, all_count=True)
            loss.backward()  # type: ignore[no-untyped-call]
            del hidden_btd, loss, mask_bts
        parameters = list(decoder.parameters())
        return _Trace(
            list(tracker.events),
            tracker.copies,
            {
                tracker.number(each.grad): each.numel()
                for each in parameters
                if each.grad is not None
            },
            step.passes * tracker.operations,
            sum(each.numel() for each in parameters),
            sum(each.numel() for each in decoder.blocks.parameters() if each.ndim == 2),
        )


def _gather(blocks: nn.Module, dtype: torch.dtype) -> None:
    """Give blocks weights of the type in which they are gathered; products need no copies."""
    for module in blocks.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach().to(dtype)))


def _part(numbers: int, devices: int) -> int:
    """Bytes of a device's part of float32 numbers."""
    return WEIGHT_BYTES * -(-numbers // devices)


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when storages are made and dropped, and counts what is computed.

    Args:
        weights: are there already, and not noted.
    """

    operations = 0
    """Those that make or change a tensor."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {_storage(each): each for each in weights}
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.events: list[tuple[int, int]] = []
        self.copies: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        of_weight = func is torch.ops.aten._to_copy.default and _storage(args[0]) in self._weights
        tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        self.operations += bool(tensors) and not func.is_view
        for each in tensors:
            self._note(_storage(each), of_weight)
        return result

    def _note(self, storage: Any, is_copy: bool) -> None:
        if storage in self._weights or storage in self._numbers:
            return
        number, size = len(self.events), int(storage.nbytes())
        self._numbers[storage] = number
        self.events.append((number, size))
        if is_copy:
            self.copies.add(number)
        weakref.finalize(storage, _dropped(self.events, number, size))

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor that was made here."""
        return self._numbers[_storage(tensor)]


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _dropped(events: list[tuple[int, int]], number: int, size: int) -> Callable[[], None]:
    return lambda: events.append((number, -size))
