"""The training loop of a student: packed rows, a teacher's distributions, the mixed loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.device import device_of
from lmsmith.models.adapters import TrainedState
from lmsmith.models.decoder import Decoder
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.training.distillation import (
    Objective,
    StateError,
    distillation_sums,
    state_errors,
)
from lmsmith.training.language_model import (
    VALIDATION,
    held_out_looks,
    training_flops_per_token,
    training_summary,
)
from lmsmith.training.loop import BestWeights, few_steps_warning, rise_warning, run_steps
from lmsmith.training.machine import (
    ResolvedMachine,
    choose_compiling,
    evaluation_mode,
    matrix_peak,
)
from lmsmith.training.optimiser import Optimiser, OptimiserConfig
from lmsmith.training.packed import packed_rows
from lmsmith.training.teacher import TaughtBatch, Teacher


@dataclass(frozen=True)
class MatchedStates:
    """Hidden states of a teacher that a student's are drawn to.

    Attributes:
        teacher: reads the same rows.
        teacher_layers, student_layers: the numbers of blocks after which states are compared.
        weight: of the mean error (`state_errors`) in the loss.
    """

    teacher: Decoder
    teacher_layers: int
    student_layers: int
    weight: float
    error: StateError


class Sums(NamedTuple):
    """Sums over the positions with a target; the first has the gradient."""

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    state_error: Tensor


def student_sums(
    student: Decoder,
    teacher: Teacher | None,
    batch: TaughtBatch,
    objective: Objective,
    rows: slice = slice(None),
    matched: MatchedStates | None = None,
) -> Sums:
    """`distillation_sums` over the targets of packed rows, and the error of hidden states."""
    packed = packed_rows(batch, device_of(student), rows)
    teach = teacher.teach(batch, rows) if teacher is not None else None
    state_error = torch.zeros((), device=packed.targets_bt.device)
    if matched is None:
        hidden_btd = student(*packed.read)
    else:
        after = (matched.student_layers, student.config.layers)
        states_btd, last_btd = student.states(after, *packed.read)
        hidden_btd = student.final_norm(last_btd)
        with evaluation_mode(matched.teacher):
            (theirs_btd,) = matched.teacher.states((matched.teacher_layers,), *packed.read)
        wanted_bt = packed.targets_bt != NO_TARGET
        errors_n = state_errors(states_btd[wanted_bt], theirs_btd[wanted_bt], matched.error)
        state_error = errors_n.sum()
    sums = distillation_sums(
        hidden_btd, student.unembedding_weight, packed.targets_bt, teach, objective
    )
    if matched is None:
        return Sums(*sums, state_error)
    return Sums(sums[0] + matched.weight * state_error, *sums[1:], state_error)


def accumulate_student_gradients(
    student: Decoder,
    teacher: Teacher | None,
    batch: TaughtBatch,
    objective: Objective,
    machine: ResolvedMachine,
    micro_batch_size: int = 0,
    matched: MatchedStates | None = None,
) -> tuple[dict[str, float], int]:
    """Add the gradient of the batch's mean loss to the student's.

    Returns:
        Means per target by the names of `Sums`, nats except ``state_error``; and the number of
        targets.
    """
    targets = int((batch.targets_bt != NO_TARGET).sum())
    rows = batch.tokens_bt.shape[0]
    totals = torch.zeros(len(Sums._fields), device=device_of(student))
    for start in range(0, rows, micro_batch_size or rows):
        place = slice(start, start + (micro_batch_size or rows))
        with machine.autocast():
            sums = student_sums(student, teacher, batch, objective, place, matched)
        (sums.loss / max(1, targets)).backward()  # type: ignore[no-untyped-call]
        totals += torch.stack(sums).detach() / max(1, targets)
    return dict(zip(Sums._fields, totals.tolist(), strict=True)), targets


def train_student(
    student: Decoder,
    teacher: Teacher | None,
    batches: Callable[[int], TaughtBatch],
    objective: Objective,
    optimiser_config: OptimiserConfig,
    learning_rate_factor: Callable[[int], float],
    machine: ResolvedMachine,
    out: StageFolder,
    *,
    steps: int,
    micro_batch_size: int,
    bytes_per_token: float,
    teacher_flops: float,
    held_out_bits_per_byte: Callable[[], float] | None,
    validations: int,
    matched: MatchedStates | None = None,
) -> dict[str, float]:
    """Train a student in place; it ends with the weights that did best on held-out text.

    Args:
        batches, learning_rate_factor: functions of the step.
        out: its seed gives the dropout; its folder gets checkpoints and metrics.jsonl.
        bytes_per_token: of the target text, to give the cross entropy in bits per byte.
        teacher_flops: operations of the teacher on a token; 0 where nothing is computed.
        matched: hidden states that the student's are drawn to as well.

    Returns:
        `training_summary`.
    """
    optimiser = Optimiser(machine.put(student), optimiser_config, [student.blocks], machine.dtype)
    tokens_bt = batches(0).tokens_bt
    flops = training_flops_per_token(student, tokens_bt.shape[1]) + teacher_flops
    if matched is not None:
        machine.put(matched.teacher)
    planned = steps * tokens_bt.size * flops
    if choose_compiling(machine, planned, out.checkpoints):
        out.progress.note(f"{out.name}: compiling the blocks; the first step takes longer")
        student.compile_blocks()
    best, peak = BestWeights(student), matrix_peak(machine)
    out.warn(few_steps_warning(steps, "raise tokens, or lower batch_tokens"))
    torch.manual_seed(derive_seed(out.seed, "dropout"))

    def step(index: int) -> Mapping[str, float]:
        started = time.perf_counter()
        batch = batches(index)
        student.train()
        found, targets = accumulate_student_gradients(
            student, teacher, batch, objective, machine, micro_batch_size, matched
        )
        factor = learning_rate_factor(index)
        gradient_norm = optimiser.step(factor)
        speed = batch.tokens_bt.size / (time.perf_counter() - started)
        return {
            "loss": found["loss"],
            "divergence": found["divergence"],
            **({"state_error": found["state_error"]} if matched is not None else {}),
            "bits_per_byte": found["cross_entropy"] / math.log(2) / bytes_per_token,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "target_tokens": targets,
            "tokens_per_second": speed,
            "share_of_peak": min(1.0, speed * flops / 1e9 / peak),
        }

    def validate(done: int) -> dict[str, float]:
        assert held_out_bits_per_byte is not None
        found = held_out_bits_per_byte()
        best.offer((-found,), done)
        return {VALIDATION: found}

    run_steps(
        steps=steps,
        step=step,
        state={"model": TrainedState(student), "optimiser": optimiser, "best": best},
        out=out,
        description=out.name.replace("_", " "),
        shown=(
            "divergence" if matched is None else "state_error",
            "bits_per_byte",
            "tokens_per_second",
            VALIDATION,
        ),
        evaluate=validate if held_out_bits_per_byte is not None else None,
        evaluate_every=max(1, steps // validations),
    )
    best.restore()
    looks = held_out_looks(out)
    out.warn(
        rise_warning("bits per byte", [(int(r["step"]), r[VALIDATION]) for r in looks], best.step)
    )
    return training_summary(out)
