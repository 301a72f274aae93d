"""Batches of packed conversations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.prompts.sft_rows import SFTBatches, pack_best_fit

CONTEXT = 12
Row = tuple[list[int], list[bool]]


@st.composite
def conversations(draw: st.DrawFn) -> list[Row]:
    rows = []
    first = 1
    for length in draw(st.lists(st.integers(2, CONTEXT + 1), min_size=1, max_size=12)):
        is_target = [
            False,
            *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)),
        ]
        rows.append((list(range(first, first + length)), is_target))
        first += length
    return rows


def pairs_of(batch: Batch) -> list[tuple[int, int]]:
    has_target = batch.targets_bt != NO_TARGET
    pairs = zip(batch.tokens_bt[has_target], batch.targets_bt[has_target], strict=True)
    return [(int(token), int(target)) for token, target in pairs]


def pairs_in(rows: list[Row]) -> list[tuple[int, int]]:
    return [
        (tokens[at - 1], tokens[at])
        for tokens, is_target in rows
        for at in range(1, len(tokens))
        if is_target[at]
    ]


@given(conversations(), st.integers(0, 2**63 - 1))
def test_every_target_is_there_once_an_epoch(rows: list[Row], seed: int) -> None:
    if not pairs_in(rows):
        with pytest.raises(UserError, match="no conversation holds anything"):
            SFTBatches(rows, CONTEXT, 1, seed)
        return
    batches = SFTBatches(rows, CONTEXT, 1, seed)
    for epoch in range(2):
        steps = range(epoch * batches.rows_per_epoch, (epoch + 1) * batches.rows_per_epoch)
        seen = [pair for step in steps for pair in pairs_of(batches.batch(step))]
        assert Counter(seen) == Counter(pairs_in(rows))
    assert batches.targets_per_epoch == len(pairs_in(rows))


@given(conversations(), st.integers(1, 4), st.integers(0, 9))
def test_conversations_stay_whole_and_apart(rows: list[Row], batch_size: int, step: int) -> None:
    if not pairs_in(rows):
        return
    batch = SFTBatches(rows, CONTEXT, batch_size, 5).batch(step)
    starts = {tokens[0] for tokens, _ in rows}
    for tokens, targets, documents, positions in zip(
        batch.tokens_bt, batch.targets_bt, batch.documents_bt, batch.positions_bt, strict=True
    ):
        for document in np.unique(documents):
            inside = documents == document
            assert positions[inside].tolist() == list(range(int(inside.sum())))
            if (targets[inside] != NO_TARGET).any():
                run = tokens[inside]
                assert run[0] in starts
                assert run.tolist() == list(range(run[0], run[0] + len(run)))
            else:
                assert document == documents[-1]  # padding
                assert not tokens[inside].any()


@given(conversations(), st.integers(0, 30))
def test_any_step_by_itself_is_what_it_is_in_order(rows: list[Row], step: int) -> None:
    if not pairs_in(rows):
        return
    in_order = SFTBatches(rows, CONTEXT, 3, 5)
    for before in range(step):
        in_order.batch(before)
    alone = SFTBatches(rows, CONTEXT, 3, 5)
    assert np.array_equal(in_order.batch(step).tokens_bt, alone.batch(step).tokens_bt)
    assert np.array_equal(in_order.batch(step).targets_bt, alone.batch(step).targets_bt)


@given(st.lists(st.integers(1, 20), max_size=40))
def test_packing_uses_every_item_once_and_no_bin_overflows(items: list[int]) -> None:
    bins = pack_best_fit(items, 20)
    assert sorted(item for chosen in bins for item in chosen) == list(range(len(items)))
    assert all(sum(items[item] for item in chosen) <= 20 for chosen in bins)
    if len(items) > 1:  # no two bins that would fit in one
        totals = sorted(sum(items[item] for item in chosen) for chosen in bins)
        assert len(totals) < 2 or totals[0] + totals[1] > 20


def test_packing_by_hand() -> None:
    assert pack_best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    with pytest.raises(ValueError, match="item 1 has length 11"):
        pack_best_fit([1, 11], 10)


def test_a_conversation_that_is_too_long_is_not_cut_in_silence() -> None:
    row = (list(range(30)), [True] * 30)
    with pytest.raises(ValueError, match="needs 29 positions; there are 12"):
        SFTBatches([row], CONTEXT, 1, 0)


def test_what_comes_after_the_last_target_takes_no_room() -> None:
    row = (list(range(30)), [False, True] + [False] * 28)
    batch = SFTBatches([row], CONTEXT, 1, 0).batch(0)
    assert batch.documents_bt[0].tolist() == [0] + [1] * 11


def test_epochs_at() -> None:
    rows = [(list(range(13)), [False] + [True] * 12)] * 6
    batches = SFTBatches(rows, CONTEXT, 4, 0)
    assert batches.rows_per_epoch == 6
    assert batches.epochs_at(3) == 2.0


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    rows = [([first, first + 1], [False, True]) for first in range(1, 61)]
    batches = SFTBatches(rows, CONTEXT, 5, 0)
    assert batches.rows_per_epoch == 5
    other_seed = SFTBatches(rows, CONTEXT, 5, 1)
    orders = [batches.batch(0), batches.batch(1), other_seed.batch(0)]
    assert len({batch.tokens_bt.tobytes() for batch in orders}) == 3
