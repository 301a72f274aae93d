"""Hidden states that a student's are drawn to: closed forms, and an independent sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.offsite import make_emulator, train_only_middle
from lmsmith.training.distillation import Objective, StateError, state_errors
from lmsmith.training.language_model import training_flops_per_token
from lmsmith.training.machine import resolve_machine
from lmsmith.training.student import MatchedStates, accumulate_student_gradients
from lmsmith.training.teacher import TaughtBatch
from tiny_models import random_decoder

MACHINE = resolve_machine(MachineConfig(precision="fp32", threads=1))
CONFIG = ModelConfig(6, 16, 2, 8, 11)
OBJECTIVE = Objective(teacher_weight=0.0)


def test_errors_in_closed_form() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.5, 0.5], [100.0, 0.0]])
    student = torch.tensor([[3.0, 6.0], [0.5, 0.5], [99.0, 1.0]])
    mse = torch.tensor([(0 + 4) / 2, 0.0, (1 + 1) / 2])
    torch.testing.assert_close(state_errors(student, teacher, "mse"), mse)
    relative = torch.tensor([4 / 25, 0.0, 2 / 10_000])  # |s − t|² / |t|²
    torch.testing.assert_close(state_errors(student, teacher, "relative"), relative)
    scaled = state_errors(7 * student, 7 * teacher, "relative")
    torch.testing.assert_close(scaled, relative)


def batch() -> TaughtBatch:
    """Three packed rows of two documents each; some positions have no target."""
    chance, made = np.random.default_rng(0), Batch.empty(3, 8)
    made.tokens_bt[:] = chance.integers(0, 11, (3, 8))
    made.targets_bt[:] = chance.integers(0, 11, (3, 8))
    made.targets_bt[[0, 0, 1, 2], [1, 7, 3, 0]] = NO_TARGET
    for row in range(3):
        made.pad(row, 3 + row, 1)
        made.positions_bt[row, : 3 + row] = np.arange(3 + row)
    return TaughtBatch(**vars(made), rows_b=np.arange(3))


def reference(full: Decoder, emulator: Decoder, read: TaughtBatch, weight: float) -> torch.Tensor:
    """The whole loss, from every document read alone and its states taken from the blocks."""
    total, targets = torch.zeros(()), int((read.targets_bt != NO_TARGET).sum())
    for row in range(3):
        for document in (0, 1):
            places = read.documents_bt[row] == document
            tokens = torch.from_numpy(read.tokens_bt[row][places])[None]
            wanted = torch.from_numpy(read.targets_bt[row][places])
            kept = wanted != NO_TARGET
            positions = torch.arange(tokens.shape[1])[None]
            states = []
            for model, after in ((emulator, 3), (full, 5)):
                x = model.embed(tokens, positions)
                mask = None
                for block in list(model.blocks)[:after]:
                    x = block(x, mask)
                states.append(x[0][kept])
            loss = torch.nn.functional.cross_entropy(
                emulator.logits(emulator(tokens))[0][kept], wanted[kept], reduction="sum"
            )
            total = total + loss
            squared = (states[0] - states[1].detach()).square().sum(1)
            total = total + weight * (squared / states[1].detach().square().sum(1)).sum()
    return total / targets


@pytest.mark.parametrize("rows_at_once", [0, 1, 2])
def test_the_loss_and_its_gradient_are_those_of_documents_read_alone(rows_at_once: int) -> None:
    full = random_decoder(CONFIG)
    emulator, _ = make_emulator(full, 1, 2)  # blocks 0, 1, 4, 5
    train_only_middle(emulator, 1)
    expected = reference(full, emulator, batch(), 30.0)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = {n: p.grad.clone() for n, p in emulator.named_parameters() if p.grad is not None}
    emulator.zero_grad()
    full.zero_grad()
    matched = MatchedStates(full, 5, 3, 30.0, "relative")
    found, targets = accumulate_student_gradients(
        emulator, None, batch(), OBJECTIVE, MACHINE, rows_at_once, matched
    )
    assert targets == 20
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["loss"] == pytest.approx(found["cross_entropy"] + 30 * found["state_error"])
    ours = {n: p.grad for n, p in emulator.named_parameters() if p.grad is not None}
    assert ours.keys() == wanted.keys()
    assert {int(name.split(".")[1]) for name in ours} == {1, 2}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    assert all(each.grad is None for each in full.parameters())


@pytest.mark.parametrize("error", ["relative", "mse"])
def test_nothing_is_dropped_and_nothing_is_wrong(error: StateError) -> None:
    full = random_decoder(CONFIG)
    emulator, _ = make_emulator(full, 1, 4)
    matched = MatchedStates(full, 5, 5, 1.0, error)
    found, _ = accumulate_student_gradients(emulator, None, batch(), OBJECTIVE, MACHINE, 0, matched)
    assert found["state_error"] == 0.0


def test_operations_of_frozen_blocks_are_not_counted() -> None:
    decoder = random_decoder(CONFIG)
    whole = CONFIG.training_flops_per_token()
    assert training_flops_per_token(decoder) == whole
    train_only_middle(decoder, 1)  # four of six blocks learn
    assert training_flops_per_token(decoder) == pytest.approx(whole * (2 + 4 / 6) / 3)
