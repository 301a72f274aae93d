"""CUDA graphs of decode steps: operations are recorded once, then repeated by one call.

A step of few replies starts more operations than the processor can start while the GPU computes
them. A graph needs fixed shapes and addresses. So the numbers of replies and of pages are padded to
powers of two, a graph for each pair reads one tensor of numbers that never moves
(`DecodeStep.numbers`), and padded replies write to a page that nobody reads.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lmsmith.device import moved
from lmsmith.generation.device_kernels import DecodeStep
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.models.config import ModelConfig

VARIABLE = "LMSMITH_CUDA_GRAPHS"
"""Environment variable; 0 runs every step operation by operation."""

STEPS_BEFORE = 16
"""Steps of one shape before it is recorded, which takes as long as about three of them."""

MOST_PAGES = 512
"""Pages of a step, padding included, beyond which the GPU's work hides the starting of operations;
a graph keeps the memory of its largest operation."""

RECORDING = threading.Lock()
"""Held while a step is recorded: CUDA records one at a time in a process. What PyTorch does before
the next one (it waits for the device, and empties its cache) would break off the one in progress.
"""

log = logging.getLogger("lmsmith.generation")

Forward = Callable[[Tensor, int], Tensor]
"""States (n, width) after a step, of `DecodeStep.numbers` on the device and their pages."""


class Recorder(Protocol):
    """Records what a function starts on the device."""

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that all its graphs hold."""

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """What repeats it, and the result, which has new contents after each repetition."""


@dataclass(frozen=True)
class Graph:
    """A recorded step of one shape; ``replay`` turns the numbers into the states."""

    numbers_nc: Tensor
    replay: Callable[[], object]
    hidden_nd: Tensor


class DecodeGraphs:
    """The graphs of one model's decode steps on one cache; they are dropped when it moves.

    Args:
        device: of model and cache.
        new_recorder: makes what records; another one for each cache.

    Attributes:
        failure: why steps are no longer recorded; empty while they are.
    """

    def __init__(self, device: torch.device, new_recorder: Callable[[], Recorder]) -> None:
        self._device, self._new_recorder = device, new_recorder
        self._of: tuple[weakref.ref[PagedCache], int] | None = None
        self.failure = ""
        self._drop()

    def _drop(self) -> None:
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._steps: Counter[tuple[int, int]] = Counter()
        self._recorder = self._new_recorder()

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the graphs hold; any thread may ask, also while one records."""
        own = sum(each.numbers_nc.nbytes for each in list(self._graphs.values()))
        return self._recorder.held_bytes + own

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Replies and pages of each graph."""
        return sorted(self._graphs)

    def read(self, step: DecodeStep, cache: PagedCache, forward: Forward) -> Tensor:
        """States (n, width) of a step's tokens; by its shape's graph, if there is one."""
        shape = power_of_two(len(step)), power_of_two(step.pages)
        graph = self._graph(shape, step, cache, forward)
        if graph is None:
            return forward(moved(step.numbers(len(step), step.pages), self._device), step.pages)
        graph.numbers_nc.copy_(moved(step.numbers(*shape), self._device))
        graph.replay()
        return graph.hidden_nd[: len(step)].clone()

    def _graph(
        self, shape: tuple[int, int], step: DecodeStep, cache: PagedCache, forward: Forward
    ) -> Graph | None:
        """The graph of a shape; recorded now if there were enough such steps."""
        if self._of is None or self._of[0]() is not cache or self._of[1] != cache.pages:
            self._of = weakref.ref(cache), cache.pages
            self._drop()
        if shape in self._graphs or self.failure or shape[0] * shape[1] > MOST_PAGES:
            return self._graphs.get(shape)
        self._steps[shape] += 1
        if self._steps[shape] > STEPS_BEFORE:
            numbers_nc = moved(step.numbers(*shape), self._device)
            try:
                with RECORDING:
                    recorded = self._recorder(partial(forward, numbers_nc, shape[1]))
            except RuntimeError as error:
                self._drop()
                self.failure = str(error.__context__ or error).strip().partition("\n")[0]
                log.warning("decode steps run without CUDA graphs: %s", self.failure)
                return None
            self._graphs[shape] = Graph(numbers_nc, *recorded)
        return self._graphs.get(shape)


class CUDARecorder:
    """Records on a GPU. All graphs share one pool of memory, since one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the pool, in which no other thread's tensors are."""
        if self._pool is None:
            return 0
        segments = torch.cuda.memory_snapshot(self._pool, include_traces=False)  # type: ignore[no-untyped-call]
        return sum(int(each["total_size"]) for each in segments)

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """As `Recorder` says.

        Raises:
            RuntimeError: an operation cannot be recorded, or there is no memory.
        """
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            side = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(here)
            with torch.cuda.stream(side):
                function()  # what its first call loads or makes is no part of a graph
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # A recording that fails leaves its stream behind as the current one. Other threads may
            # go on using the GPU meanwhile (attention pictures, encoders, a version that is read).
            with (
                torch.cuda.stream(here),
                torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"),
            ):
                result = function()
            self._pool = graph.pool()
        return graph.replay, result


def graphs_for(device: torch.device, config: ModelConfig) -> DecodeGraphs | None:
    """The graphs of a model; None where steps have no fixed operations, or there is no CUDA.

    Sinusoidal positions are moved to the device in every step; dynamic rotary scaling reads every
    row by itself.
    """
    moves = config.positions == "sinusoidal" or config.rope_scaling.method == "dynamic"
    if device.type != "cuda" or moves or os.environ.get(VARIABLE) == "0":
        return None
    return DecodeGraphs(device, partial(CUDARecorder, device))


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()
