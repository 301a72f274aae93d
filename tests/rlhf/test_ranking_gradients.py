"""A batch of rankings computed in parts has the gradients, loss and accuracy of the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.recipe import MachineConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.candidates import EncodedRanking, candidate_batch, candidate_scores
from lmsmith.rlhf.ranking import pair_accuracy, ranking_loss
from lmsmith.rlhf.ranking_gradients import (
    accumulate_ranking_gradients,
    activation_bytes,
    memory_groups,
)
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))
CONFIG = ModelConfig(2, 16, 2, 96, 50)


def world(seed: int, count: int = 7) -> tuple[ScalarModel, list[EncodedRanking]]:
    """A model and rankings of 2 to 4 responses, some of them tied, of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(CONFIG)
    decoder.initialise(generator)
    model = ScalarModel(decoder)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)

    def tokens(most: int) -> list[int]:
        length = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(0, 50, (length,), generator=generator).tolist()

    ranks = [[1, 2], [2, 1, 2], [1, 1, 2, 3]]
    rankings = [
        EncodedRanking(tokens(30), [tokens(16) for _ in places], places)
        for places in itertools.islice(itertools.cycle(ranks), count)
    ]
    return model, rankings


def gradients(model: ScalarModel) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_parts_add_up_to_the_whole(rows: int) -> None:
    model, rankings = world(int(torch.randint(0, 1 << 30, ())))
    batch = candidate_batch(rankings)
    scores_bk = candidate_scores(model, batch)
    whole = ranking_loss(scores_bk, batch.ranks_bk, batch.present_bk)
    whole.backward()
    expected = gradients(model)
    longest = max(ranking.length for ranking in rankings)
    most = activation_bytes(CONFIG, rows, longest)
    loss, accuracy, tokens = accumulate_ranking_gradients(model, rankings, MACHINE, most)
    found = gradients(model)
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert accuracy == pytest.approx(
        pair_accuracy(scores_bk.detach(), batch.ranks_bk, batch.present_bk)
    )
    assert tokens < batch.tokens_bt.numel()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_what_fits_is_computed_at_once_in_its_own_order() -> None:
    assert memory_groups([3, 9, 5], CONFIG) == [[0, 1, 2]]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=40), st.integers(1, 10**9))
def test_groups_hold_every_row_once_and_stay_within_the_bytes(
    lengths: list[int], most: int
) -> None:
    groups = memory_groups(lengths, CONFIG, most)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or activation_bytes(CONFIG, len(group), longest) <= most


def test_the_estimate_is_near_what_is_kept() -> None:
    """Bytes of the tensors that autograd saves, attention's probabilities among them."""
    config = ModelConfig(3, 64, 4, 128, 50)
    decoder = Decoder(config)
    decoder.attend_explicitly()
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = decoder(torch.randint(0, 50, (4, 96)))
    total = sum(size for place, size in saved.items() if place not in weights)
    assert hidden.requires_grad
    assert 0.5 * total < activation_bytes(config, 4, 96) < 4 * total
