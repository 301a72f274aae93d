"""Groups of like length hold each sequence once."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.models.batching import activation_bytes, length_batches, memory_groups
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder

CONFIG = ModelConfig(2, 16, 2, 1024, 50)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 100))
def test_length_batches_hold_each_once_within_the_limit(lengths: list[int], tokens: int) -> None:
    groups = length_batches(lengths, tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens
    for one, other in itertools.pairwise(groups):  # no group could have been joined
        assert (len(one) + 1) * lengths[one[0]] > tokens
        assert lengths[other[0]] <= lengths[one[-1]]


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
