"""The score stands in one column, right after the end; the KL penalty at every token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.rlhf.rewards import token_rewards, value_mask


def test_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    log_probs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [5.0, 5.0, 5.0]])
    reference = torch.tensor([[-2.0, -1.5, 0.0], [-1.0, -3.0, -1.0], [0.0, 0.0, 0.0]])
    rewards, penalties = token_rewards(
        torch.tensor([3.0, -4.0, 7.0]), log_probs, reference, mask, 0.1
    )
    expected = [[-0.1, 0.05, 0.0], [0.0, -0.2, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(penalties, torch.tensor(expected))
    expected = [[-0.1, 0.05, 3.0, 0.0], [0.0, -0.2, 0.0, -4.0], [7.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_score_changes_one_column_of_its_row_and_nothing_else(
    lengths: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    log_probs, reference = (torch.randn(len(lengths), 7, generator=generator) for _ in range(2))
    scores = torch.randn(len(lengths), generator=generator)
    without, penalties = token_rewards(torch.zeros_like(scores), log_probs, reference, mask, 0.3)
    rewards, _ = token_rewards(scores, log_probs, reference, mask, 0.3)
    difference = rewards - without
    for row, length in enumerate(lengths):
        columns = difference[row].nonzero().flatten().tolist()
        assert columns == [length]
        torch.testing.assert_close(difference[row, length], scores[row])
    # The whole return without discount is the score and the penalty of the response's log ratio.
    ratio = ((log_probs - reference) * mask).sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), scores - 0.3 * ratio, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(penalties.sum(dim=1), -0.3 * ratio, rtol=1e-5, atol=1e-5)
    # That column is the last that has a value.
    states = value_mask(mask)
    assert states.sum(dim=1).tolist() == [length + 1 for length in lengths]
    assert states[torch.arange(len(lengths)), torch.tensor(lengths)].all()


def test_the_value_mask_goes_one_past_the_end() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert value_mask(mask).int().tolist() == [[1, 1, 0], [1, 1, 1]]
