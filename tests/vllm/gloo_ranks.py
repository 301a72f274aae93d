"""NCCL's calls by gloo on the processor, between two programs; the id has an address."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

ID_BYTES = 128
_stores: dict[bytes, dist.Store] = {}


def unique_id() -> bytes:
    """The address of a new store of this program, as long as NCCL's id."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    name = f"127.0.0.1:{store.port}".encode().ljust(ID_BYTES, b"\0")
    _stores[name] = store
    return name


def init_rank(ranks: int, name: bytes, rank: int) -> Any:
    """The group, once all ranks have come."""
    host, port = name.rstrip(b"\0").decode().rsplit(":", 1)
    store = _stores.get(name) or dist.TCPStore(host, int(port), is_master=False)
    return dist.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=60))


def all_reduce(inputs: Sequence[Tensor], *, comms: Sequence[Any]) -> None:
    comms[0].allreduce(list(inputs)).wait()


def broadcast(inputs: Sequence[Tensor], *, comms: Sequence[Any]) -> None:
    """From rank 0."""
    comms[0].broadcast(inputs[0], 0).wait()
