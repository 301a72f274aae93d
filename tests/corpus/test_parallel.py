"""Parallel files as pairs, and their batches by tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.parallel import EncodedPair, Pair, PairBatches, make_batch, read_parallel


def test_lines_are_pairs(tmp_path: Path) -> None:
    """A mark at the start, other line ends, empty sides, and U+2028, which ends no line."""
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\u2028more\n\nfour\n".encode())
    (tmp_path / "b").write_bytes(b"eins\nzwei\ndrei\nvier")
    pairs, empty = read_parallel(tmp_path / "a", tmp_path / "b")
    assert pairs == [Pair("one", "eins"), Pair("two\u2028more", "zwei"), Pair("four", "vier")]
    assert empty == 1


def test_files_that_are_not_parallel(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    (tmp_path / "c").write_text("\n \n")
    with pytest.raises(UserError, match=r"a has 2 lines and .*b has 1"):
        read_parallel(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="no line has text in both"):
        read_parallel(tmp_path / "a", tmp_path / "c")
    with pytest.raises(UserError, match="no such file"):
        read_parallel(tmp_path / "a", tmp_path / "d")


def pairs_of(count: int, seed: int = 0) -> list[EncodedPair]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 30, (count, 2))
    return [
        EncodedPair([*generator.integers(1, 9, a).tolist(), 0], [int(n), *[5] * int(b), 0])
        for n, (a, b) in enumerate(lengths)
    ]


def test_an_epoch_holds_every_pair_once() -> None:
    pairs = pairs_of(200)
    batches = PairBatches(pairs, 120, 7, seed=1)
    for epoch in range(2):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        made = [batches.batch(step) for step in steps]
        firsts = [int(row[0]) for batch in made for row in batch.targets_bt]
        assert sorted(firsts) == list(range(200))
        for batch in made:
            rows = len(batch.targets_bt)
            assert rows == 1 or max(batch.source_bs.size, batch.targets_bt.size) <= 120
            if batch.lengths_b is None:
                assert (batch.source_bs[:, -1] == 0).all()


def test_any_step_gives_its_own_batch() -> None:
    """A run that continues asks for a step in the middle of an epoch."""
    pairs = pairs_of(100)
    whole, later = PairBatches(pairs, 90, 7, seed=1), PairBatches(pairs, 90, 7, seed=1)
    steps = [0, 3, whole.per_epoch + 2]
    expected = [whole.batch(step).inputs_bt for step in range(max(steps) + 1)]
    for step in reversed(steps):
        assert np.array_equal(later.batch(step).inputs_bt, expected[step])
    other = PairBatches(pairs, 90, 7, seed=2)
    assert any(not np.array_equal(other.batch(step).inputs_bt, expected[step]) for step in steps)


def test_little_of_a_batch_is_padding() -> None:
    pairs = pairs_of(2000)
    batches = PairBatches(pairs, 400, 7, seed=1)
    made = [batches.batch(step) for step in range(batches.per_epoch)]
    held = sum(batch.source_bs.size + batch.targets_bt.size for batch in made)
    assert sum(batch.tokens for batch in made) > 0.85 * held


def test_a_batch_is_shifted_right_and_padded() -> None:
    batch = make_batch([EncodedPair([4, 5, 0], [6, 0]), EncodedPair([4, 0], [7, 8, 0])], 3)
    assert batch.source_bs.tolist() == [[4, 5, 0], [4, 0, 0]]
    assert batch.lengths_b is not None
    assert batch.lengths_b.tolist() == [3, 2]
    assert batch.inputs_bt.tolist() == [[3, 6, 0], [3, 7, 8]]
    assert batch.targets_bt.tolist() == [[6, 0, NO_TARGET], [7, 8, 0]]
    assert batch.tokens == 10


@pytest.mark.parametrize("language", ["de", "fr"])
def test_multi30k(language: str) -> None:
    """29,000 real pairs; batches of them have little padding."""
    folder = Path(__file__).parents[3] / "shared/data/translation"
    if not folder.is_dir():
        pytest.skip("multi30k is not here: ../shared/data/translation")
    names = (f"multi30k.train.{each}.gz" for each in ("en", language))
    pairs, empty = read_parallel(*(folder / name for name in names))
    assert (len(pairs), empty) == (29_000, 0)
    counted = [EncodedPair([1] * len(a.split()), [1] * len(b.split())) for a, b in pairs]
    batches = PairBatches(counted, 4096, 0, seed=1)
    made = [batches.batch(step) for step in range(batches.per_epoch)]
    held = sum(batch.source_bs.size + batch.targets_bt.size for batch in made)
    assert sum(batch.tokens for batch in made) > 0.9 * held
