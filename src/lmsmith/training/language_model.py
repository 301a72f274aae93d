"""Training a language model on packed rows, shared by pretraining and fine-tuning."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.device import device_of
from lmsmith.models.adapters import TrainedState, has_adapters
from lmsmith.models.decoder import Decoder
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.training.loop import BestWeights, few_steps_warning, rise_warning, run_steps
from lmsmith.training.losses import linear_cross_entropy_sum
from lmsmith.training.machine import (
    ResolvedMachine,
    choose_compiling,
    matrix_peak,
    raised_peak,
)
from lmsmith.training.optimiser import Optimiser, OptimiserConfig
from lmsmith.training.packed import packed_rows
from lmsmith.training.parallel import add_up, team
from lmsmith.training.sharding import divided, fetch

VALIDATION = "validation/bits_per_byte"


def packed_loss_sum(decoder: Decoder, batch: Batch, rows: slice = slice(None)) -> Tensor:
    """Cross entropy in nats, summed over a packed batch's targets.

    No position attends to another document, and positions count from each document's start, so the
    sum equals that of the same pieces in rows of their own.
    """
    packed = packed_rows(batch, device_of(decoder), rows)
    hidden_btd = decoder(*packed.read)
    return linear_cross_entropy_sum(
        hidden_btd, decoder.unembedding_weight, packed.targets_bt, compiled=decoder.compiled
    )


def accumulate_gradients(
    decoder: Decoder,
    batch: Batch,
    machine: ResolvedMachine,
    micro_batch_size: int = 0,
    weight: float = 1.0,
) -> tuple[float, int]:
    """Add the gradient of ``weight`` × the batch's mean loss per target token to the parameters'.

    Args:
        micro_batch_size: rows computed at a time; 0 for all. The mean is over the whole batch, of
            which several processes compute a part each.

    Returns:
        Mean loss in nats per target (not weighted), and the number of targets.
    """
    targets, total = int((batch.targets_bt != NO_TARGET).sum()), 0.0
    rows = len(batch.tokens_bt)
    for part, share in team().parts(partial(row_parts, rows, micro_batch_size or rows)):
        with machine.autocast(keeps_copies=False):
            loss = share * packed_loss_sum(decoder, batch, part) / max(1, targets)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return add_up(total)[0], targets


def row_parts(rows: int, most: int, rank: int) -> list[slice]:
    """The rows of a batch that the process of a rank computes, ``most`` at a time."""
    count = team().count
    own = -(-(rows - rank) // count)  # every count-th
    starts = range(0, max(0, own), most)
    return [slice(rank + i * count, rank + min(own, i + most) * count, count) for i in starts]


def training_flops_per_token(decoder: Decoder, row: int | None = None) -> float:
    """Floating-point operations of training on a token, in rows of so many; else of the context.

    Frozen weights save a third: their own gradient. Where the first blocks are frozen too, less is
    computed than this says.
    """
    whole = decoder.config.training_flops_per_token(row)
    if has_adapters(decoder):
        return whole * 2 / 3
    sizes = [(value.numel(), value.requires_grad) for value in decoder.blocks.parameters()]
    trained = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    return whole * (2 + trained) / 3


def training_step(
    decoder: Decoder,
    batches: Callable[[int], Batch],
    optimiser: Optimiser,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    bytes_per_token: float,
    micro_batch_size: int = 0,
) -> Callable[[int], Mapping[str, float]]:
    """The step function of `loop.run_steps` for a language model.

    Args:
        decoder: trained in place.
        batches, learning_rate_factor: functions of the step.
        bytes_per_token: of the target text, to give the loss in bits per byte.
        micro_batch_size: as in `accumulate_gradients`.
    """
    flops_per_token = cache(partial(training_flops_per_token, decoder))
    peak = matrix_peak(machine)

    def step(index: int) -> Mapping[str, float]:
        nonlocal peak
        started = time.perf_counter()
        batch = batches(index)
        decoder.train()
        loss, targets = accumulate_gradients(decoder, batch, machine, micro_batch_size)
        factor = learning_rate_factor(index)
        gradient_norm = optimiser.step(factor)
        tokens_per_second = batch.tokens_bt.size / (time.perf_counter() - started)
        flops = tokens_per_second * flops_per_token(batch.tokens_bt.shape[1])
        gigaflops = flops / 1e9 / team().count
        peak = raised_peak(machine, peak, gigaflops)
        return {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "target_tokens": targets,
            "tokens_per_second": tokens_per_second,
            "share_of_peak": gigaflops / peak,
        }

    return step


def train_language_model(
    decoder: Decoder,
    batches: Callable[[int], Batch],
    optimiser_config: OptimiserConfig,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    out: StageFolder,
    *,
    description: str,
    steps: int,
    batch_tokens: int,
    row_tokens: int,
    micro_batch_size: int,
    bytes_per_token: float,
    held_out_bits_per_byte: Callable[[Decoder], float] | None,
    validations: int,
    more_steps: str = "train for longer",
) -> dict[str, float]:
    """Train a decoder in `loop.run_steps`, its blocks compiled where the run is long enough.

    At the end the decoder has the weights that did best on held-out text. Too few steps, and a
    held-out loss that rises again, are warned of. The rest is as in `training_step`.

    Args:
        out: the stage's folder; dropout is drawn from its seed.
        description: the stage's name, for the progress view.
        held_out_bits_per_byte: measures a decoder on held-out text; None if there is none.
        validations: how often it is called along the way.
        more_steps: the fix of too few steps.

    Returns:
        `training_summary`.
    """
    (trained,) = divided(machine, decoder)
    optimiser = Optimiser(trained, optimiser_config, [trained.blocks], machine.dtype)
    planned_flops = steps * batch_tokens * training_flops_per_token(decoder, row_tokens)
    if choose_compiling(machine, planned_flops, out.checkpoints):
        out.progress.note(f"{description}: compiling the blocks; the first step takes longer")
        trained.compile_blocks()
        decoder.compiled = True
    step = training_step(
        trained,
        batches,
        optimiser,
        learning_rate_factor,
        machine,
        bytes_per_token,
        micro_batch_size,
    )
    best = BestWeights(trained)

    def validate(done: int) -> dict[str, float]:
        assert held_out_bits_per_byte is not None
        found = held_out_bits_per_byte(trained)
        best.offer((-found,), done)
        return {VALIDATION: found}

    def finish() -> None:
        best.restore()
        fetch(trained, decoder)

    if warning := few_steps_warning(steps, more_steps):
        out.progress.say(f"{description}: {warning}")
    torch.manual_seed(derive_seed(out.seed, "dropout"))
    run_steps(
        steps=steps,
        step=step,
        state={"model": TrainedState(trained), "optimiser": optimiser, "best": best},
        out=out,
        description=description,
        shown=("bits_per_byte", "tokens_per_second", "share_of_peak", VALIDATION),
        evaluate=validate if held_out_bits_per_byte is not None else None,
        evaluate_every=max(1, steps // validations),
        finish=finish,
    )
    looks = [(int(row["step"]), row[VALIDATION]) for row in held_out_looks(out)]
    if warning := rise_warning("bits per byte", looks, best.step):
        out.progress.say(f"{description}: {warning}")
    return training_summary(out)


def held_out_looks(out: StageFolder) -> list[dict[str, float]]:
    """The rows of the metrics log with a loss on held-out text."""
    return [row for row in read_metrics(out.metrics_log().path) if VALIDATION in row]


def training_summary(out: StageFolder) -> dict[str, float]:
    """A trained stage's metrics log in a few numbers.

    ``tokens_per_second`` and ``share_of_peak`` are medians over the steps, so that compiling and
    a busy machine's worst moments do not count.
    """
    rows, looks = read_metrics(out.metrics_log().path), held_out_looks(out)
    last = rows[-1]
    summary = {
        "steps": float(last["step"]),
        "final_loss": last["loss"],
        "final_bits_per_byte": last["bits_per_byte"],
        "trained_target_tokens": sum(row["target_tokens"] for row in rows),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "share_of_peak": statistics.median(row["share_of_peak"] for row in rows),
    }
    if looks:
        best = min(looks, key=lambda row: row[VALIDATION])
        summary |= {"validation_bits_per_byte": best[VALIDATION], "best_step": best["step"]}
    return summary
