"""NCCL's calls between two ranks of one process, whose tensors may lie anywhere."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lmsmith.generation import weight_transfer

UNIQUE_ID = bytes(range(128))


class TwoRanks:
    """Each call of one rank ends when the other has made it too; a communicator is its rank.

    Attributes:
        calls: of rank 0, in order.
    """

    def __init__(self, seconds: float) -> None:
        self.meeting = threading.Barrier(2, timeout=seconds)
        self._sent: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self.calls: list[str] = []

    def unique_id(self) -> bytes:
        return UNIQUE_ID

    def init_rank(self, ranks: int, name: bytes, rank: int) -> int:
        assert (ranks, name) == (2, UNIQUE_ID)
        self._called("init_rank", rank)
        return rank

    def all_reduce(self, inputs: Sequence[Tensor], *, comms: Sequence[int]) -> None:
        assert inputs[0].shape == (1,)
        self._called("all_reduce", comms[0])

    def broadcast(self, inputs: Sequence[Tensor], *, comms: Sequence[int]) -> None:
        (tensor,), (rank,) = inputs, comms
        assert tensor.is_contiguous()
        if rank == 0:
            self._sent.put(tensor)
        self._called("broadcast", rank)
        if rank != 0:
            sent = self._sent.get()
            assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype)
            tensor.copy_(sent)

    def _called(self, name: str, rank: int) -> None:
        if rank == 0:
            self.calls.append(name)
        self.meeting.wait()


@contextmanager
def two_ranks(patch: pytest.MonkeyPatch, seconds: float = 10.0) -> Iterator[TwoRanks]:
    """In place of PyTorch's NCCL, which takes the processor's tensors for a GPU's."""
    ranks = TwoRanks(seconds)
    for name in ("unique_id", "init_rank", "all_reduce", "broadcast"):
        patch.setattr(torch.cuda.nccl, name, getattr(ranks, name))
    patch.setattr(weight_transfer, "sends_by_nccl", lambda device: True)
    try:
        yield ranks
    finally:
        ranks.meeting.abort()  # what waits still, as NCCL would
