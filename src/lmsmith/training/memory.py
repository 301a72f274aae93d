"""Memory of a training step before it runs: the step itself, traced on tensors without numbers.

The model's own code runs forward and backward on PyTorch's fake tensors, which have shapes alone.
Every tensor that it makes and drops is noted, so the greatest sum at any moment is known by kind.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
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
"""Blocks whose weights are whole at once where processes divide them: one computes, one comes."""


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
        rows, length: of a micro batch, in tokens; ``passes`` of them follow each other.
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
    whole = _whole_memory(step)
    if devices == 1:
        return whole
    config = step.config
    body = config.block_parameters
    root = config.parameters - body * config.layers
    gathered = root + PREFETCHED * body + max(root, body)  # the last: a gradient that is summed
    return replace(
        whole,
        **{kind: -(-getattr(whole, kind) // devices) for kind in _DIVIDED},
        gathered=WEIGHT_BYTES * gathered,
    )


_DIVIDED = ("weights", "gradients", "optimiser", "best")


def _whole_memory(step: Step) -> StepMemory:
    """The memory of one device that holds all. Layers repeat, so that few of many are traced."""
    layers, period = step.config.layers, len(step.config.attention_pattern)
    few, more = 3 * period, 4 * period
    if layers <= more or (layers - few) % period:
        return _computed(step)
    one, other = (
        _computed(replace(step, config=replace(step.config, layers=n))).by_kind()
        for n in (few, more)
    )
    times = (layers - few) // period
    return StepMemory(**{kind: one[kind] + times * (other[kind] - one[kind]) for kind in one})


@functools.cache
def _computed(step: Step) -> StepMemory:
    with FakeTensorMode():
        decoder = Decoder(step.config)
        decoder.checkpoint_activations = step.checkpointed
        found = _traced(decoder, step)
        sizes = [each.numel() for each in decoder.parameters()]
        matrices = sum(each.numel() for each in decoder.blocks.parameters() if each.ndim == 2)
    numbers = sum(sizes)
    states = 2 * numbers - (matrices if step.muon else 0)
    return replace(
        found,
        weights=WEIGHT_BYTES * numbers,
        optimiser=WEIGHT_BYTES * states,
        best=WEIGHT_BYTES * numbers,
    )


def _traced(decoder: Decoder, step: Step) -> StepMemory:
    """Gradients, copies and activations at the fullest moment of the passes."""
    tracker = _Tracker(list(decoder.parameters()))
    tokens_bt = torch.zeros(step.rows, step.length, dtype=torch.long)
    with tracker:
        for _ in range(step.passes):
            mask_bts = packed_mask(tokens_bt) if step.packed else None
            with autocast(HOST, step.dtype, keeps_copies=False):
                hidden_btd = decoder(tokens_bt, None, mask_bts)
                weight = decoder.unembedding_weight
                loss = linear_cross_entropy_sum(hidden_btd, weight, tokens_bt, all_count=True)
            loss.backward()  # type: ignore[no-untyped-call]
            del hidden_btd, loss, mask_bts
    return tracker.fullest([each.grad for each in decoder.parameters() if each.grad is not None])


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when storages are made and dropped.

    Args:
        weights: are there already, and not noted.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {_storage(each): each for each in weights}
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._events: list[tuple[int, int]] = []
        self._copies: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        of_weight = func is torch.ops.aten._to_copy.default and _storage(args[0]) in self._weights
        for each in torch.utils._pytree.tree_leaves(result):
            if isinstance(each, Tensor):
                self._note(_storage(each), of_weight)
        return result

    def _note(self, storage: Any, is_copy: bool) -> None:
        if storage in self._weights or storage in self._numbers:
            return
        number, size = len(self._events), int(storage.nbytes())
        self._numbers[storage] = number
        self._events.append((number, size))
        if is_copy:
            self._copies.add(number)
        weakref.finalize(storage, _dropped(self._events, number, size))

    def fullest(self, gradients: Sequence[Tensor]) -> StepMemory:
        """The greatest sum, by kind.

        Args:
            gradients: of the weights, after the last pass.
        """
        kept = {self._numbers[_storage(each)] for each in gradients}
        now = dict.fromkeys(("gradients", "copies", "activations"), 0)
        best, most = dict(now), 0
        for number, size in self._events:
            kind = "gradients" if number in kept else "activations"
            now["copies" if number in self._copies else kind] += size
            if (total := sum(now.values())) > most:
                best, most = dict(now), total
        return StepMemory(**best)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _dropped(events: list[tuple[int, int]], number: int, size: int) -> Callable[[], None]:
    return lambda: events.append((number, -size))
