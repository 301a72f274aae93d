"""The chunked loss equals torch's cross entropy on all logits, value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.training import losses
from lmsmith.training.losses import linear_cross_entropy_sum

POSITIONS, WIDTH, VOCABULARY = 29, 12, 53


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    targets[torch.rand(POSITIONS, generator=generator) < 0.3] = NO_TARGET
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=NO_TARGET, reduction="sum")


@pytest.mark.parametrize("rows_at_once", [1, 4, 7, 29, 1000])
def test_value_and_gradients_in_any_number_of_chunks(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", rows_at_once * VOCABULARY)
    monkeypatch.setattr(losses, "CHUNK_ROWS", 1, raising=False)
    hidden, weight, targets = inputs(rows_at_once)
    found = []
    for function in (plain, linear_cross_entropy_sum):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(*leaves, targets)
        # The loss is used twice and scaled, as a mean or γ_ptx would.
        gradients = torch.autograd.grad(0.37 * loss + 1.0, leaves)
        found.append((loss.detach(), *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        loss = linear_cross_entropy_sum(hidden, weight, targets)
    torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_label_smoothing_is_torchs_and_padding_does_not_count(
    monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 7 * VOCABULARY)
    monkeypatch.setattr(losses, "CHUNK_ROWS", 1, raising=False)
    hidden, weight, targets = inputs(2)
    found = []
    for smooth in (
        lambda h, w: F.cross_entropy(
            h @ w.T,
            targets,
            ignore_index=NO_TARGET,
            reduction="sum",
            label_smoothing=smoothing,
        ),
        lambda h, w: linear_cross_entropy_sum(h, w, targets, smoothing=smoothing),
    ):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = smooth(*leaves)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        alone = linear_cross_entropy_sum(hidden, weight, targets, smoothing=smoothing)
        real = targets != NO_TARGET
        unpadded = linear_cross_entropy_sum(
            hidden[real], weight, targets[real], smoothing=smoothing
        )
    torch.testing.assert_close(alone, found[0][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unpadded, found[0][0], rtol=1e-5, atol=1e-5)


def test_leading_dimensions_may_be_several() -> None:
    hidden, weight, targets = inputs(3)
    shaped = hidden[:28].view(2, 14, WIDTH).requires_grad_()
    loss = linear_cross_entropy_sum(shaped, weight, targets[:28].view(2, 14))
    torch.testing.assert_close(loss, plain(hidden[:28], weight, targets[:28]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert shaped.grad is not None
    assert shaped.grad.shape == shaped.shape


def test_no_targets_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = inputs(4)
    leaf = hidden.requires_grad_()
    loss = linear_cross_entropy_sum(leaf, weight, torch.full_like(targets, NO_TARGET))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()
    with torch.no_grad():
        assert linear_cross_entropy_sum(hidden[:0], weight, targets[:0]).item() == 0.0


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = inputs(5)
    hidden = (hidden * 1e4).requires_grad_()
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    torch.testing.assert_close(loss, plain(hidden, weight, targets).detach(), rtol=1e-5, atol=1e-2)


def test_bf16_is_close_and_leaves_float32_gradients() -> None:
    hidden, weight, targets = inputs(6)
    exact = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    rounded = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = plain(*exact, targets)
    expected.backward()  # type: ignore[no-untyped-call]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy_sum(*rounded, targets)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.0)
    for one, other in zip(exact, rounded, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.dtype == torch.float32
        distance = (one.grad - other.grad).norm() / one.grad.norm()
        assert distance < 0.02


def test_chunks_cover_all_rows_and_all_but_the_last_are_of_one_size() -> None:
    for rows, vocabulary in ((8192, 4096), (1, 50_257), (9000, 50_257), (8192, 3), (0, 9)):
        chunks = losses.chunks(rows, vocabulary)
        sizes = [len(range(rows)[chunk]) for chunk in chunks]
        assert sum(sizes) == rows
        assert len(set(sizes[:-1])) <= 1
        assert not sizes or 0 < sizes[-1] <= sizes[0]


def test_logits_are_made_for_targets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 8)
    targets = torch.full((40,), NO_TARGET)
    targets[[3, 11, 12, 30, 39]] = 1
    needed = losses._needed_positions(targets)
    assert needed is not None
    assert len(needed) == 8  # the next multiple of 4
    assert {3, 11, 12, 30, 39} <= set(needed.tolist())
    assert sorted(set(needed.tolist())) == needed.tolist()
    assert losses._needed_positions(torch.ones(40, dtype=torch.long)) is None
