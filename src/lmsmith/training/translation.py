"""The loss of an encoder–decoder on pairs of sentences."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.parallel import PairBatch
from lmsmith.device import device_of, moved
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.training.losses import linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine


def pair_loss_sum(model: EncoderDecoder, batch: PairBatch, smoothing: float = 0.0) -> Tensor:
    """Cross entropy in nats, summed over a batch's target tokens; padding does not count.

    Args:
        smoothing: ε of label smoothing (Vaswani et al. 2017, section 5.4: 0.1).
    """
    device = device_of(model)
    parts = (batch.source_bs, batch.inputs_bt, batch.targets_bt)
    source, inputs, targets_bt = (moved(torch.from_numpy(each), device) for each in parts)
    lengths = None if batch.lengths_b is None else moved(torch.from_numpy(batch.lengths_b), device)
    hidden_btd = model(source, inputs, lengths)
    return linear_cross_entropy_sum(
        hidden_btd, model.unembedding_weight, targets_bt, smoothing=smoothing
    )


def pair_loss(
    model: EncoderDecoder, batches: Iterable[PairBatch], machine: ResolvedMachine
) -> float:
    """Mean cross entropy of a target token in nats, without smoothing and dropout."""
    total, targets = 0.0, 0
    with machine.reading(model):
        for batch in batches:
            total += float(pair_loss_sum(model, batch))
            targets += int((batch.targets_bt != NO_TARGET).sum())
    return total / max(1, targets)
