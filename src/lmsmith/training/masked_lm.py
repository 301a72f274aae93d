"""Training an encoder to predict masked tokens, and whether a sentence follows another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.masking import MaskedBatch
from lmsmith.device import device_of, moved
from lmsmith.models.attention import padding_mask
from lmsmith.models.decoder import Decoder
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.training.loop import BestWeights, few_steps_warning, run_steps
from lmsmith.training.machine import (
    ResolvedMachine,
    choose_compiling,
    matrix_peak,
    raised_peak,
)
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

ACCURACY, LOSS = "validation/masked_accuracy", "validation/masked_loss"


@dataclass(frozen=True)
class Guesses:
    """Predictions of hidden tokens: sums over them.

    Attributes:
        right: predicted right.
        loss: nats.
        targets: predicted in all.
    """

    right: int = 0
    loss: float = 0.0
    targets: int = 0

    def __add__(self, other: Guesses) -> Guesses:
        return Guesses(
            self.right + other.right, self.loss + other.loss, self.targets + other.targets
        )

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return self.right / max(1, self.targets)

    @property
    def mean_loss(self) -> float:
        """Nats per hidden token."""
        return self.loss / max(1, self.targets)


def encoded(model: MaskedLM, batch: MaskedBatch) -> Tensor:
    """The encoder's states of a batch, (batch, length, width)."""
    device = device_of(model)
    tokens = moved(torch.from_numpy(batch.tokens_bt), device)
    whole = bool((batch.lengths_b == tokens.shape[1]).all())
    lengths = moved(torch.from_numpy(batch.lengths_b), device)
    mask = None if whole else padding_mask(lengths, tokens.shape[1])
    segments = moved(torch.from_numpy(batch.segments_bt), device)
    hidden: Tensor = model.decoder(tokens, None, mask, segments)
    return hidden


def masked_losses(model: MaskedLM, batch: MaskedBatch) -> tuple[Tensor, Tensor, int, int]:
    """Mean cross entropy of the hidden tokens, and of "it follows", in nats; how many of each
    kind are right. The second loss is 0 without pairs.
    """
    hidden_btd = encoded(model, batch)
    targets_bt = moved(torch.from_numpy(batch.targets_bt), hidden_btd.device)
    chosen_bt = targets_bt != NO_TARGET
    logits_nv, targets_n = model.logits(hidden_btd[chosen_bt]).float(), targets_bt[chosen_bt]
    loss = F.cross_entropy(logits_nv, targets_n)
    right = int((logits_nv.argmax(dim=-1) == targets_n).sum())
    if batch.follows_b is None:
        return loss, torch.zeros_like(loss), right, 0
    follows_b = moved(torch.from_numpy(batch.follows_b), hidden_btd.device)
    logits_b2 = model.follows(hidden_btd).float()
    right_pairs = int((logits_b2.argmax(dim=-1) == follows_b).sum())
    return loss, F.cross_entropy(logits_b2, follows_b), right, right_pairs


def flops_per_token(model: MaskedLM, context: int, fraction: float) -> float:
    """Operations in products of a token's training; the head reads ``fraction`` of the tokens."""
    shape = model.config.model
    head = shape.vocabulary_size * shape.width
    body = shape.training_flops_per_token(context) - 6.0 * head
    return body + 6.0 * fraction * (head + shape.width * shape.width)


def masked_step(
    model: MaskedLM,
    batches: Callable[[int], MaskedBatch],
    optimiser: Optimiser,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    flops: float,
) -> Callable[[int], Mapping[str, float]]:
    """The step function of `loop.run_steps`; ``flops`` are a token's."""
    peak = matrix_peak(machine)

    def step(index: int) -> Mapping[str, float]:
        nonlocal peak
        started = time.perf_counter()
        batch = batches(index)
        model.train()
        with machine.autocast():
            loss, pair_loss, right, right_pairs = masked_losses(model, batch)
        (loss + pair_loss).backward()  # type: ignore[no-untyped-call]
        factor = learning_rate_factor(index)
        norm = optimiser.step(factor)
        tokens = int(batch.lengths_b.sum())
        speed = tokens / (time.perf_counter() - started)
        peak = raised_peak(machine, peak, speed * flops / 1e9)
        targets = int((batch.targets_bt != NO_TARGET).sum())
        row = {
            "loss": loss.item(),
            "masked_accuracy": right / targets,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": norm,
            "target_tokens": targets,
            "tokens": tokens,
            "tokens_per_second": speed,
            "share_of_peak": speed * flops / 1e9 / peak,
        }
        if batch.follows_b is not None:
            row |= {
                "next_sentence_loss": pair_loss.item(),
                "next_sentence_accuracy": right_pairs / len(batch.follows_b),
            }
        return row

    return step


def train_masked_lm(
    model: MaskedLM,
    batches: Callable[[int], MaskedBatch],
    optimiser_config: OptimiserConfig,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    out: StageFolder,
    *,
    steps: int,
    batch_tokens: int,
    fraction: float,
    held_out: Sequence[MaskedBatch],
    validations: int,
) -> dict[str, float]:
    """Train in `loop.run_steps`; at the end the model has the weights that did best on
    ``held_out``, if there are any. The rest is as in `masked_step`.

    Returns:
        A summary of the metrics log; speeds are medians over the steps.
    """
    optimiser = Optimiser(
        machine.put(model), optimiser_config, [model.decoder.blocks], machine.dtype
    )
    flops = flops_per_token(model, model.config.model.context, fraction)
    if choose_compiling(machine, steps * batch_tokens * flops, out.checkpoints):
        out.progress.note("masked_lm: compiling the blocks; the first step takes longer")
        model.decoder.compile_blocks()
    best = BestWeights(model)

    def validate(done: int) -> dict[str, float]:
        found = encoder_guesses(model, held_out, machine)
        best.offer((-found.mean_loss,), done)
        return {ACCURACY: found.accuracy, LOSS: found.mean_loss}

    more = "raise masked_lm.tokens, or lower masked_lm.batch_tokens"
    if warning := few_steps_warning(steps, more):
        out.progress.say(f"masked_lm: {warning}")
    torch.manual_seed(derive_seed(out.seed, "dropout"))
    run_steps(
        steps=steps,
        step=masked_step(model, batches, optimiser, learning_rate_factor, machine, flops),
        state={"model": model, "optimiser": optimiser, "best": best},
        out=out,
        description="masked_lm",
        shown=("loss", "masked_accuracy", "tokens_per_second", "share_of_peak", ACCURACY),
        evaluate=validate if held_out else None,
        evaluate_every=max(1, steps // validations),
    )
    best.restore()
    rows = read_metrics(out.metrics_log().path)
    return {
        "steps": float(rows[-1]["step"]),
        "final_loss": rows[-1]["loss"],
        "best_step": float(best.step or rows[-1]["step"]),
        "trained_target_tokens": sum(row["target_tokens"] for row in rows),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "share_of_peak": statistics.median(row["share_of_peak"] for row in rows),
    }


def encoder_guesses(
    model: MaskedLM, held_out: Sequence[MaskedBatch], machine: ResolvedMachine
) -> Guesses:
    """An encoder's predictions of the hidden tokens, from both sides."""
    total = Guesses()
    with machine.reading(model):
        for batch in held_out:
            targets_bt = moved(torch.from_numpy(batch.targets_bt), device_of(model))
            chosen_bt = targets_bt != NO_TARGET
            logits_nv = model.logits(encoded(model, batch)[chosen_bt]).float()
            total += _guesses(logits_nv, targets_bt[chosen_bt])
    return total


def decoder_guesses(
    decoder: Decoder, held_out: Sequence[MaskedBatch], machine: ResolvedMachine
) -> Guesses:
    """A decoder's predictions of the same tokens, from what stands to their left, nothing of which
    is hidden from it.
    """
    total = Guesses()
    with machine.reading(decoder):
        for batch in held_out:
            device = device_of(decoder)
            targets_bt = moved(torch.from_numpy(batch.targets_bt), device)
            chosen_bt = targets_bt != NO_TARGET
            hidden_bt = moved(torch.from_numpy(batch.tokens_bt), device)
            tokens_bt = torch.where(chosen_bt, targets_bt, hidden_bt)
            hidden_btd = decoder(tokens_bt)[:, :-1][chosen_bt[:, 1:]]
            total += _guesses(decoder.logits(hidden_btd).float(), targets_bt[chosen_bt])
    return total


def unigram_guesses(counts_v: npt.NDArray[np.int64], held_out: Sequence[MaskedBatch]) -> Guesses:
    """Predictions by the tokens' frequencies in training: always the most frequent one."""
    probabilities_v = (counts_v + 1.0) / (counts_v.sum() + len(counts_v))
    logits_v = torch.from_numpy(np.log(probabilities_v))
    total = Guesses()
    for batch in held_out:
        targets_n = torch.from_numpy(batch.targets_bt[batch.targets_bt != NO_TARGET])
        total += _guesses(logits_v.expand(len(targets_n), -1), targets_n)
    return total


def _guesses(logits_nv: Tensor, targets_n: Tensor) -> Guesses:
    loss = float(F.cross_entropy(logits_nv, targets_n, reduction="sum"))
    return Guesses(int((logits_nv.argmax(dim=-1) == targets_n).sum()), loss, len(targets_n))
