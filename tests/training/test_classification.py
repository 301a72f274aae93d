"""L3 = L2 + λ·L1 in parts, against losses that are written out; and the loss that broadcasts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.training import classification
from lmsmith.training.classification import (
    EncodedExample,
    accumulate_classifier_gradients,
    balanced_weights,
    pad_examples,
    predict,
    predicted_number,
    squared_error,
    task_losses,
)
from lmsmith.training.machine import resolve_machine
from tiny_models import random_decoder

SHAPE = ModelConfig(2, 16, 2, 24, 50)
MACHINE = resolve_machine(MachineConfig(precision="fp32", threads=1))
S, D, E = 50, 51, 52
EXAMPLES = [
    EncodedExample([[S, 3, 4, 5, E]], 0, 1.0, False),
    EncodedExample([[S, 6, D, 7, E]], 1, 4.0, False),
    EncodedExample([[S, 9, E]], 1, 2.5, False),
]


def classifier(**settings: object) -> Classifier:
    config = ClassifierConfig(SHAPE, dropout=0.0, labels=("no", "yes"))
    model = Classifier(replace(config, **settings), random_decoder(SHAPE))  # type: ignore[arg-type]
    model.initialise_head(torch.Generator().manual_seed(1))
    return model


def test_a_loss_that_would_broadcast_is_refused() -> None:
    """(b, 1) against (b,) compares all with all: STS-B 28 instead of 88."""
    wide, flat = torch.randn(32, 1), torch.randn(32)
    with pytest.raises(ValueError, match=r"\(b,\) and \(b,\) expected"):
        squared_error(wide, flat)
    assert squared_error(wide[:, 0], flat).shape == (32,)
    assert torch.allclose(squared_error(wide[:, 0], flat).mean(), F.mse_loss(wide[:, 0], flat))


def test_text_tokens_alone_are_predicted() -> None:
    padded = pad_examples(EXAMPLES, 50)
    n = NO_TARGET
    assert padded.targets_nt.tolist() == [[3, 4, 5, n, n], [6, n, 7, n, n], [9, n, n, n, n]]
    assert padded.counts_b == [1, 1, 1]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.5, 0.75])])
def test_the_gradient_is_that_of_the_written_out_loss(weights: torch.Tensor | None) -> None:
    model = classifier().eval()
    found = accumulate_classifier_gradients(model, EXAMPLES, MACHINE, 0.5, weights)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses, words = [], []
    for example in EXAMPLES:
        (sequence,) = example.sequences
        hidden = model.states(torch.tensor([sequence]), torch.tensor([len(sequence)]))[0][0]
        logits = hidden[-1] @ model.head.weight.T
        weight = 1.0 if weights is None else float(weights[example.label])
        losses.append(-weight * torch.log_softmax(logits, 0)[example.label])
        words += [
            -torch.log_softmax(model.decoder.logits(hidden[place]), 0)[token]  # type: ignore[operator]
            for place, token in enumerate(sequence[1:])
            if token < 50
        ]
    task, lm = torch.stack(losses).mean(), torch.stack(words).mean()
    (task + 0.5 * lm).backward()
    assert found["loss"] == pytest.approx(task.item(), rel=1e-5)
    assert found["lm_loss"] == pytest.approx(lm.item(), rel=1e-5)
    assert found["tokens"] == 13
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name


def test_examples_in_groups_have_the_gradient_of_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = classifier()
    accumulate_classifier_gradients(model, EXAMPLES, MACHINE, 0.5)
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(classification, "memory_groups", lambda lengths, config: [[2, 0], [1]])
    accumulate_classifier_gradients(model, EXAMPLES, MACHINE, 0.5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(whole[name], parameter.grad, atol=1e-5), name


def test_a_number_is_learnt_in_standard_deviations() -> None:
    model = classifier(labels=(), mean=2.5, deviation=1.5)
    (logits, *_), numbers = predict(model, EXAMPLES, MACHINE), [1.0, 4.0, 2.5]
    assert predicted_number(model, logits) == pytest.approx(2.5 + 1.5 * float(logits[0]))
    all_logits = torch.cat(predict(model, EXAMPLES, MACHINE))
    targets = (torch.tensor(numbers) - 2.5) / 1.5
    found = accumulate_classifier_gradients(model, EXAMPLES, MACHINE)
    assert found["loss"] == pytest.approx(F.mse_loss(all_logits, targets).item(), rel=1e-5)


def test_numbers_far_from_zero_keep_their_digits() -> None:
    """Float32 has steps of 128 at a time in seconds since 1970."""
    times = [1.6e9 + 60 * minute for minute in range(3)]
    examples = [replace(each, target=time) for each, time in zip(EXAMPLES, times, strict=True)]
    model = classifier(labels=(), mean=times[1], deviation=60.0)
    losses = task_losses(model, torch.tensor([[-1.0], [0.0], [1.0]]), examples)
    assert losses.tolist() == [0.0, 0.0, 0.0]


def test_predictions_stand_in_the_examples_order_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classification, "TOKENS_AT_ONCE", 6)
    model = classifier(dropout=0.5).train()
    found = predict(model, EXAMPLES, MACHINE)
    assert model.training
    for example, logits in zip(EXAMPLES, found, strict=True):
        assert torch.allclose(logits, predict(model, [example], MACHINE)[0], atol=1e-5)


def test_balanced_weights() -> None:
    weights = balanced_weights([0, 1, 1, 1], 2)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])
    assert sum(weights[label] for label in (0, 1, 1, 1)) / 4 == pytest.approx(1.0)
