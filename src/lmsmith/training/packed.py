"""Packed rows of a batch as tensors on a model's device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmsmith.corpus.batches import Batch
from lmsmith.device import moved
from lmsmith.models.attention import packed_mask


class PackedRows(NamedTuple):
    """The first three are what a decoder reads: `decoder(*rows.read)`."""

    tokens_bt: Tensor
    positions_bt: Tensor
    mask_bts: Tensor
    """True where a position may attend to a column: before it, in its own document."""
    targets_bt: Tensor

    @property
    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        return self[:3]


def packed_rows(batch: Batch, device: torch.device, rows: slice = slice(None)) -> PackedRows:
    """Some rows of a batch on a device."""

    def tensor(name: str) -> Tensor:
        return moved(torch.from_numpy(getattr(batch, name)[rows]), device)

    mask_bts = packed_mask(tensor("documents_bt"))
    return PackedRows(tensor("tokens_bt"), tensor("positions_bt"), mask_bts, tensor("targets_bt"))
