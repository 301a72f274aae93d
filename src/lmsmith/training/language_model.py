"""One training step of a language model on packed rows, shared by pretraining and fine-tuning."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsmith.core.metrics import read_metrics
from lmsmith.core.runs import StageFolder
from lmsmith.models.attention import packed_mask
from lmsmith.models.decoder import Decoder
from lmsmith.training.losses import IGNORED, linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine, measure_matrix_peak
from lmsmith.training.optimiser import Optimiser


class PackedBatch(Protocol):
    """Rows that hold several documents: what `corpus.packing` makes."""

    @property
    def tokens_bt(self) -> NDArray[np.int64]: ...
    @property
    def targets_bt(self) -> NDArray[np.int64]: ...
    @property
    def documents_bt(self) -> NDArray[np.int32]: ...
    @property
    def positions_bt(self) -> NDArray[np.int64]: ...


def packed_loss_sum(decoder: Decoder, batch: PackedBatch, rows: slice = slice(None)) -> Tensor:
    """Cross entropy in nats, summed over a packed batch's targets.

    No position attends to another document, and positions count from each document's start in
    its row, so the sum equals that of the same pieces in rows of their own.
    """
    hidden_btd = decoder(
        torch.from_numpy(batch.tokens_bt[rows]),
        torch.from_numpy(batch.positions_bt[rows]),
        packed_mask(torch.from_numpy(batch.documents_bt[rows])),
    )
    targets_bt = torch.from_numpy(batch.targets_bt[rows])
    return linear_cross_entropy_sum(
        hidden_btd, decoder.unembedding_weight, targets_bt, compiled=decoder.compiled
    )


def accumulate_gradients(
    decoder: Decoder,
    batch: PackedBatch,
    machine: ResolvedMachine,
    rows_at_once: int = 0,
    weight: float = 1.0,
) -> tuple[float, int]:
    """Add the gradient of ``weight`` × the batch's mean loss per target token to the parameters'.

    The mean is over the tokens of the whole batch, whatever part of it is computed at once.

    Returns:
        Mean loss in nats per target (not weighted), and the number of targets.
    """
    targets = int((batch.targets_bt != IGNORED).sum())
    rows = batch.tokens_bt.shape[0]
    step = rows_at_once or rows
    total = 0.0
    for start in range(0, rows, step):
        with machine.autocast():
            loss = packed_loss_sum(decoder, batch, slice(start, start + step)) / max(1, targets)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, targets


def training_step(
    decoder: Decoder,
    batches: Callable[[int], PackedBatch],
    optimiser: Optimiser,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    bytes_per_token: float,
    rows_at_once: int = 0,
) -> Callable[[int], Mapping[str, float]]:
    """The step function of `loop.run_steps` for a language model.

    Args:
        decoder: trained in place.
        batches: the batch of a step.
        optimiser: of the decoder's parameters.
        learning_rate_factor: of a step.
        machine: precision.
        bytes_per_token: of the target text, to give the loss in bits per byte.
        rows_at_once: rows computed at a time; 0 for all (gradient accumulation otherwise).
    """
    flops_per_token = decoder.config.training_flops_per_token()
    peak = measure_matrix_peak(machine.precision)

    def step(index: int) -> Mapping[str, float]:
        started = time.perf_counter()
        batch = batches(index)
        decoder.train()
        loss, targets = accumulate_gradients(decoder, batch, machine, rows_at_once)
        factor = learning_rate_factor(index)
        gradient_norm = optimiser.step(factor)
        tokens_per_second = batch.tokens_bt.size / (time.perf_counter() - started)
        return {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "target_tokens": targets,
            "tokens_per_second": tokens_per_second,
            "share_of_peak": tokens_per_second * flops_per_token / (peak * 1e9),
        }

    return step


def training_summary(out: StageFolder) -> dict[str, float]:
    """What a trained stage's metrics log comes to, resumed or not.

    ``tokens_per_second`` and ``share_of_peak`` are medians over the steps, so that compiling and
    a busy machine's worst moments do not count.
    """
    rows = read_metrics(out.metrics_log().path)
    last = rows[-1]
    summary = {
        "steps": float(last["step"]),
        "final_loss": last["loss"],
        "final_bits_per_byte": last["bits_per_byte"],
        "trained_target_tokens": sum(row["target_tokens"] for row in rows),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "share_of_peak": statistics.median(row["share_of_peak"] for row in rows),
    }
    name = "validation/bits_per_byte"
    held_out = [row[name] for row in rows if name in row]
    if held_out:
        summary["validation_bits_per_byte"] = held_out[-1]
    return summary
