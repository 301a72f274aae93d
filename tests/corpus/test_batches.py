"""Pretraining batches teach each token once an epoch, across no border, in the right shares."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import BLOCK, NO_TARGET, Batch, PretrainingBatches
from lmsmith.corpus.shards import TokenShards

END = 0


def shards_of(lengths: list[int], first: int = 1) -> TokenShards:
    """Documents whose tokens are all different, so that each pair of neighbours is known."""
    starts = first + np.cumsum([0, *lengths])
    documents = [
        range(int(start), int(start) + length)
        for start, length in zip(starts, lengths, strict=False)
    ]
    framed = [[END, *document, END] for document in documents]
    offsets = np.cumsum([0, *map(len, framed)]).astype(np.int64)
    tokens = np.array([token for document in framed for token in document], np.uint32)
    return TokenShards(tokens, offsets)


def pairs_of(batch: Batch) -> list[tuple[int, int]]:
    """(token, its target), wherever there is a target."""
    has_target = batch.targets_bt != NO_TARGET
    pairs = zip(batch.tokens_bt[has_target], batch.targets_bt[has_target], strict=True)
    return [(int(token), int(target)) for token, target in pairs]


def pairs_in(shards: TokenShards) -> list[tuple[int, int]]:
    documents = np.split(shards.tokens, shards.offsets[1:-1])
    return [pair for tokens in documents for pair in pairwise(tokens.tolist())]


def rows_per_epoch(shards: TokenShards, context: int) -> int:
    """Each token but the first is a target once."""
    return -(-(shards.total_tokens - 1) // context)


def equal(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(_arrays(one), _arrays(other), strict=True))


def _arrays(batch: Batch) -> list[np.ndarray]:
    return [batch.tokens_bt, batch.targets_bt, batch.documents_bt, batch.positions_bt]


lengths = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(lengths, st.integers(1, 20), st.integers(0, 2**63 - 1))
def test_each_target_is_there_once_an_epoch(documents: list[int], context: int, seed: int) -> None:
    shards = shards_of(documents)
    batches = PretrainingBatches([shards], [1.0], context, 1, seed)
    rows = rows_per_epoch(shards, context)
    for epoch in range(2):
        steps = range(epoch * rows, (epoch + 1) * rows)
        seen = [pair for step in steps for pair in pairs_of(batches.batch(step))]
        assert Counter(seen) == Counter(pairs_in(shards))


@given(lengths, st.integers(1, 20), st.integers(1, 5), st.integers(0, 40))
def test_documents_and_positions_show_every_border(
    documents: list[int], context: int, batch_size: int, step: int
) -> None:
    batch = PretrainingBatches([shards_of(documents)], [1.0], context, batch_size, 3).batch(step)
    for tokens, targets, document, position in zip(*_arrays(batch), strict=True):
        assert document[0] == position[0] == 0
        for at in range(1, context):
            continues = document[at] == document[at - 1]
            assert position[at] == (position[at - 1] + 1 if continues else 0)
            assert continues or document[at] == document[at - 1] + 1
            assert continues or targets[at - 1] == NO_TARGET
            if targets[at - 1] != NO_TARGET:
                assert targets[at - 1] == tokens[at]
            if position[at] == 0 and targets[at] != NO_TARGET:
                assert tokens[at] == END  # a document that begins inside a row begins with this


@given(
    st.lists(lengths, min_size=2, max_size=3),
    st.lists(st.floats(0.01, 5), min_size=3, max_size=3),
    st.integers(0, 600),
)
def test_any_step_by_itself_is_what_it_is_in_order(
    sources: list[list[int]], weights: list[float], step: int
) -> None:
    shards = [shards_of(documents, 1000 * number + 1) for number, documents in enumerate(sources)]
    make = lambda: PretrainingBatches(shards, weights[: len(shards)], 8, 4, 11)  # noqa: E731
    in_order = make()
    for before in range(max(0, step - 3), step):
        in_order.batch(before)
    assert equal(in_order.batch(step), make().batch(step))


def test_the_order_depends_on_seed_and_epoch() -> None:
    shards = shards_of([40] * 20)
    batches = PretrainingBatches([shards], [1.0], 16, 8, 1)
    rows = rows_per_epoch(shards, 16)
    assert not equal(batches.batch(0), PretrainingBatches([shards], [1.0], 16, 8, 2).batch(0))
    one = PretrainingBatches([shards], [1.0], 16, rows, 1)
    assert not equal(one.batch(0), one.batch(1))


def sources_drawn(batches: PretrainingBatches, steps: int) -> list[int]:
    """Which of two sources each row is from, told apart by their tokens."""
    rows = np.concatenate([batches.batch(step).tokens_bt.max(axis=1) for step in range(steps)])
    return (rows > 1000).astype(int).tolist()


@pytest.mark.parametrize("weight", [0.0, 0.001, 0.3, 2 / 3, 1.0])
def test_shares_are_met_in_each_block_and_in_the_long_run(weight: float) -> None:
    shards = [shards_of([50] * 4), shards_of([50] * 4, 1001)]
    batches = PretrainingBatches(shards, [1 - weight, weight], 16, 64, 5)
    steps = 8 * BLOCK // 64
    drawn = sources_drawn(batches, steps)
    for block in range(8):
        count = sum(drawn[block * BLOCK : (block + 1) * BLOCK])
        assert abs(count - weight * BLOCK) <= 1
    assert sum(drawn) / len(drawn) == pytest.approx(weight, abs=1 / BLOCK)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [([0.0, 0.0], "not all 0"), ([-1.0, 2.0], "0 or more"), ([1.0, 1.0], "source 2 .* no text")],
)
def test_bad_mixtures(weights: list[float], problem: str) -> None:
    shards = [shards_of([5]), shards_of([])]
    with pytest.raises(UserError, match=problem):
        PretrainingBatches(shards, weights, 8, 2, 0)
    batch = PretrainingBatches(shards, [1.0, 0.0], 8, 2, 0).batch(3)
    assert (batch.targets_bt != NO_TARGET).any()
