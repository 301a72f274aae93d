"""Rows for masked-token prediction: what is hidden, pairs, and that a step is a pure function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import NO_TARGET, generator
from lmsmith.corpus.masking import MaskedBatches, Masking
from lmsmith.corpus.shards import TokenShards, write_shards

PAD, CLS, SEP, MASK = 0, 2, 3, 4
CONTINUES = np.arange(100) % 3 == 0
MASKING = Masking(MASK, np.arange(5, 100), CONTINUES)


def shards(folder: Path, lengths: tuple[int, ...] = (40, 7, 100, 3, 61)) -> TokenShards:
    chance = np.random.default_rng(0)
    documents = [chance.integers(5, 100, size=length).tolist() for length in lengths]
    return write_shards(folder / "shards", documents, SEP, 100, [CLS])


def batches(source: TokenShards, **options: object) -> MaskedBatches:
    frame = {"cls": CLS, "sep": SEP, "pad": PAD}
    return MaskedBatches([source], MASKING, 24, 4, 7, **frame, **options)  # type: ignore[arg-type]


def test_shares_of_hidden_tokens_are_the_papers() -> None:
    chance, tokens = generator(1), np.full(4000, 50)
    places = MASKING.chosen(tokens, chance)
    assert len(places) == len(set(places.tolist())) == 600
    hidden = MASKING.hidden(tokens, places, chance)
    assert np.array_equal(np.delete(hidden, places), np.delete(tokens, places))
    masked, kept = (hidden[places] == MASK).mean(), (hidden[places] == 50).mean()
    assert masked == pytest.approx(0.8, abs=0.05)
    assert kept == pytest.approx(0.1, abs=0.04)
    assert not {0, 1, 2, 3} & set(hidden.tolist())  # no other control token is ever drawn


def test_at_least_one_token_is_hidden() -> None:
    assert MASKING.chosen(np.array([9]), generator(1)).tolist() == [0]
    words = replace(MASKING, whole_words=True)
    assert words.chosen(np.array([10, 9, 9, 9]), generator(1)).tolist() == [0, 1, 2, 3]


def test_whole_words_are_hidden_together() -> None:
    masking = replace(MASKING, whole_words=True)
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(5, 100, 80)
        places = set(masking.chosen(tokens, generator(seed)).tolist())
        assert 0 < len(places) <= round(0.15 * 80)
        for place in range(1, 80):
            if CONTINUES[tokens[place]]:
                assert (place in places) == (place - 1 in places)


def test_a_step_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    source = shards(tmp_path)
    one, other = batches(source), batches(source)
    for step in (5, 0, 3, 5):
        first, second = one.batch(step), other.batch(step)
        for name in ("tokens_bt", "targets_bt", "segments_bt", "lengths_b"):
            assert np.array_equal(getattr(first, name), getattr(second, name))


def test_the_same_text_is_masked_differently_in_each_epoch(tmp_path: Path) -> None:
    made = batches(shards(tmp_path, (20,)))
    seen = {tuple(made.batch(step).targets_bt[0].tolist()) for step in range(8)}
    assert len(seen) > 4


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_are_framed_and_their_targets_are_the_text(tmp_path: Path, pairs: bool) -> None:
    made = batches(shards(tmp_path), pairs=pairs)
    for step in range(6):
        batch = made.batch(step)
        for row in range(4):
            length = int(batch.lengths_b[row])
            tokens, targets = batch.tokens_bt[row], batch.targets_bt[row]
            assert tokens[0] == CLS
            assert tokens[length - 1] == SEP
            assert (tokens[length:] == PAD).all()
            ends = np.flatnonzero(tokens == SEP)
            assert len(ends) == 1 + pairs
            assert (targets[[0, *ends]] == NO_TARGET).all()
            expected = np.zeros(24)
            if pairs:
                expected[ends[0] + 1 : length] = 1
            assert np.array_equal(batch.segments_bt[row], expected)
            count = int((targets != NO_TARGET).sum())
            assert count == max(1, round(0.15 * (length - 2 - pairs)))


def test_every_token_is_read_once_an_epoch(tmp_path: Path) -> None:
    source = shards(tmp_path)
    made = batches(source)
    spans = made._draw_epoch(3)
    read = sorted(
        token
        for number, start, end in spans
        for token in range(
            int(made._documents[number][1]) + start, int(made._documents[number][1]) + end
        )
    )
    inside = [
        t
        for a, b in zip(source.offsets, source.offsets[1:], strict=False)
        for t in range(a + 1, b - 1)
    ]
    assert read == inside
    assert spans != made._draw_epoch(4)


def test_half_of_the_pairs_follow(tmp_path: Path) -> None:
    source = shards(tmp_path)
    made = batches(source, pairs=True)
    text = source.tokens.tolist()
    joined = {tuple(text[i : i + 2]) for i in range(len(text) - 1)}
    labels = []
    for step in range(60):
        batch = made.batch(step)
        assert batch.follows_b is not None
        labels += batch.follows_b.tolist()
        whole = np.where(batch.targets_bt == NO_TARGET, batch.tokens_bt, batch.targets_bt)
        for row in np.flatnonzero(batch.follows_b == 0):
            middle = int(np.flatnonzero(whole[row] == SEP)[0])
            assert (whole[row, middle - 1], whole[row, middle + 1]) in joined
    assert np.mean(labels) == pytest.approx(0.5, abs=0.1)


def test_what_does_not_follow_is_from_another_document(tmp_path: Path) -> None:
    """Each document has tokens of its own, so a token tells its document."""
    documents = [list(range(10 * n, 10 * n + 10)) * 4 for n in (1, 2, 3)]
    made = batches(write_shards(tmp_path / "own", documents, SEP, 100, [CLS]), pairs=True)
    seen = set()
    for step in range(40):
        batch = made.batch(step)
        assert batch.follows_b is not None
        whole = np.where(batch.targets_bt == NO_TARGET, batch.tokens_bt, batch.targets_bt)
        for row, apart in enumerate(batch.follows_b):
            middle = int(np.flatnonzero(whole[row] == SEP)[0])
            first, second = whole[row, middle - 1] // 10, whole[row, middle + 1] // 10
            assert (first != second) == apart
            seen.add((first, second))
    assert len(seen) == 9


def test_too_little_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few documents"):
        batches(shards(tmp_path, (40,)), pairs=True)
