"""Distillation's losses against closed forms and PyTorch's own KL, and the teacher's store."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.models.config import ModelConfig
from lmsmith.training import losses, teacher
from lmsmith.training.distillation import (
    Objective,
    Taught,
    distillation_sums,
    forward_kl,
    mixed,
    position_losses,
    reverse_kl,
    tempered_log_probs,
    top_events,
)
from lmsmith.training.machine import resolve_machine
from lmsmith.training.teacher import FixedRows, LiveTeacher, TeacherStore
from tiny_models import random_decoder

MACHINE = resolve_machine(MachineConfig(precision="fp32", compile="off", threads=1))
POSITIONS, VOCABULARY, WIDTH = 7, 11, 5


def logits(seed: int, rows: int = POSITIONS, columns: int = VOCABULARY) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_both_divergences_equal_pytorchs() -> None:
    p, q = (tempered_log_probs(logits(seed), 1.7) for seed in (1, 2))
    expected = F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(forward_kl(p, q), expected, rtol=1e-12, atol=1e-12)
    expected = F.kl_div(p, q, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(reverse_kl(p, q), expected, rtol=1e-12, atol=1e-12)
    assert float(forward_kl(p, p).abs().max()) < 1e-15


def test_two_events_have_their_closed_form() -> None:
    p, q = (torch.tensor([[a, 1 - a]], dtype=torch.float64).log() for a in (0.8, 0.4))
    expected = 0.8 * math.log(2) + 0.2 * math.log(0.2 / 0.6)
    assert float(forward_kl(p, q)) == pytest.approx(expected, rel=1e-12)
    certain = torch.tensor([[0.0, float("-inf")]], dtype=torch.float64)
    assert float(forward_kl(certain, q)) == pytest.approx(-math.log(0.4))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_top_k_is_at_most_the_whole_and_equal_where_k_is_the_vocabulary(divergence) -> None:  # type: ignore[no-untyped-def]
    p, q = (tempered_log_probs(logits(seed), 1.0) for seed in (3, 4))
    whole, before = divergence(p, q), torch.zeros(POSITIONS, dtype=torch.float64)
    for k in range(1, VOCABULARY + 1):
        tokens = p.topk(k, dim=1).indices
        events = [top_events(each, tokens) for each in (p, q)]
        for each in events:  # the rest of the mass is accounted for
            torch.testing.assert_close(each.exp().sum(1), torch.ones(POSITIONS).double())
        found = divergence(*events)
        assert bool((found >= before - 1e-12).all())
        before = found
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("k", [0, 3])
def test_gradients_are_those_of_the_formula(name: str, k: int) -> None:
    objective = Objective(name, 1.5, 0.7)  # type: ignore[arg-type]
    p = tempered_log_probs(logits(5), 1.5)
    tokens = p.topk(3, dim=1).indices
    taught = Taught(top_events(p, tokens), tokens) if k else Taught(p)
    targets = torch.arange(POSITIONS)

    def loss(student: Tensor) -> Tensor:
        return mixed(*position_losses(student, targets, taught, objective), objective)

    assert torch.autograd.gradcheck(loss, logits(6).requires_grad_(True))


def test_the_forward_gradient_has_its_closed_form() -> None:
    temperature, student = 2.0, logits(7).requires_grad_(True)
    p = tempered_log_probs(logits(8), temperature)
    objective = Objective("forward_kl", temperature, 1.0)
    parts = position_losses(student, torch.zeros(POSITIONS).long(), Taught(p), objective)
    mixed(*parts, objective).sum().backward()
    q = tempered_log_probs(student.detach(), temperature)
    torch.testing.assert_close(student.grad, temperature * (q.exp() - p.exp()))


def test_sums_in_chunks_equal_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 2)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    objective = Objective("reverse_kl", 1.3, 0.6)
    hidden = logits(9, POSITIONS, WIDTH).float().requires_grad_(True)
    weight = logits(10, VOCABULARY, WIDTH).float().requires_grad_(True)
    targets = torch.tensor([3, NO_TARGET, 1, 0, NO_TARGET, 10, 4])
    p = tempered_log_probs(logits(11, 5).float(), 1.3)
    sums = distillation_sums(hidden, weight, targets, lambda rows: Taught(p[rows]), objective)
    (3 * sums[0]).backward()
    found = [each.grad for each in (hidden, weight)]
    kept = targets != NO_TARGET
    others = [each.detach().clone().requires_grad_(True) for each in (hidden, weight)]
    parts = position_losses(others[0][kept] @ others[1].T, targets[kept], Taught(p), objective)
    expected = mixed(*parts, objective).sum()
    (3 * expected).backward()
    torch.testing.assert_close(sums[0], expected)
    torch.testing.assert_close(torch.stack(sums[1:]), torch.stack([part.sum() for part in parts]))
    for ours, other in zip(found, others, strict=True):
        torch.testing.assert_close(ours, other.grad)
    assert not sums[1].requires_grad


def test_without_a_teacher_it_is_the_next_token_loss() -> None:
    objective = Objective(teacher_weight=0.0)
    hidden, weight = logits(12, POSITIONS, WIDTH).float(), logits(13, VOCABULARY, WIDTH).float()
    weight.requires_grad_(True)
    targets = torch.tensor([3, NO_TARGET, 1, 0, 2, 10, 4])
    loss, divergence, cross_entropy = distillation_sums(hidden, weight, targets, None, objective)
    expected = losses.linear_cross_entropy_sum(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    assert float(divergence) == 0.0
    torch.testing.assert_close(cross_entropy, loss.detach())


def rows(count: int = 9, length: int = 6) -> FixedRows:
    """Rows of random tokens, some of whose targets are left out, in two documents."""

    def row(number: int) -> Batch:
        chance = np.random.default_rng(number)
        batch = Batch.empty(1, length)
        batch.tokens_bt[0] = chance.integers(0, VOCABULARY, length)
        batch.targets_bt[0] = chance.integers(0, VOCABULARY, length)
        batch.targets_bt[0, number % length] = NO_TARGET
        batch.pad(0, 3, 1)
        batch.positions_bt[0, :3] = np.arange(3)
        return batch

    return FixedRows(row, count, 4, 5)


def live(seed: int = 0) -> LiveTeacher:
    return LiveTeacher(random_decoder(ModelConfig(2, 16, 2, 8, VOCABULARY), seed), 1.5, MACHINE)


def test_rows_are_all_read_once_in_each_epoch() -> None:
    fixed = rows()
    read = [int(n) for step in range(9) for n in fixed.batch(step).rows_b]
    for epoch in range(4):
        assert sorted(read[9 * epoch : 9 * epoch + 9]) == list(range(9))
    assert read[:9] != read[9:18]


def test_the_store_gives_the_live_teachers_likeliest(tmp_path: Path) -> None:
    fixed, source = rows(), live()
    store = TeacherStore(tmp_path / "store", fixed, source, 4, QuietProgress())
    batch = fixed.batch(1)
    for place in (slice(None), slice(1, 3)):
        count = int((batch.targets_bt[place] != NO_TARGET).sum())
        for chunk in (slice(0, count), slice(2, count)):
            expected = source.teach(batch, place)(chunk).log_probs_ne
            found = store.teach(batch, place)(chunk)
            assert found.tokens_nk is not None
            assert torch.equal(found.tokens_nk, expected.topk(4, dim=1).indices)
            torch.testing.assert_close(
                found.log_probs_ne, top_events(expected, found.tokens_nk), rtol=2e-3, atol=2e-3
            )
            assert torch.allclose(found.log_probs_ne.exp().sum(1), torch.ones(len(expected)))


def test_a_store_is_continued_used_again_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "ROWS_AT_ONCE", 2)
    fixed, read = rows(), list[int]()
    whole = TeacherStore(tmp_path / "whole", fixed, live(), 4, QuietProgress())
    real = TeacherStore._fill_rows

    def fill(store: TeacherStore, source: LiveTeacher, first: int, last: int) -> None:
        read.append(first)
        real(store, source, first, last)

    monkeypatch.setattr(TeacherStore, "_fill_rows", fill)
    asked = iter([None, 2])
    monkeypatch.setattr(teacher, "stop_requested", lambda: next(asked, None))
    with pytest.raises(Interrupted):
        TeacherStore(tmp_path / "cut", fixed, live(), 4, QuietProgress())
    TeacherStore(tmp_path / "cut", fixed, live(), 4, QuietProgress())
    assert read == [0, 2, 4, 6, 8]
    for name in ("tokens.npy", "log_probs.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    read.clear()
    TeacherStore(tmp_path / "cut", fixed, live(), 4, QuietProgress())
    assert not read
    TeacherStore(tmp_path / "cut", fixed, live(seed=1), 4, QuietProgress())
    assert read == [0, 2, 4, 6, 8]
    assert whole.bytes == 45 * (4 * 2 + 5 * 2)


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        TeacherStore(tmp_path, rows(), live(), 4, QuietProgress())
