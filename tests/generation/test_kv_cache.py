"""Rows of the cache share pages, copy what they change, and give back what they leave."""

from __future__ import annotations

import random

import pytest
import torch

from lmsmith.generation.kv_cache import PAGE, PagedCache
from lmsmith.models.config import ModelConfig

CONFIG = ModelConfig(
    layers=2, width=8, heads=2, context=400, vocabulary_size=9,
    attention_pattern=("dense", "banded"), window=70,
)  # fmt: skip


def write(cache: PagedCache, row: int, numbers: list[float]) -> None:
    """Tokens whose keys are these numbers, and values their opposites."""
    start = cache.lengths[row]
    cache.extend(row, len(numbers))
    keys = torch.tensor(numbers)[:, None, None].expand(-1, 2, 4)
    rows = torch.full((len(numbers),), row, dtype=torch.int32)
    positions = torch.arange(start, start + len(numbers), dtype=torch.int32)
    for layer in cache.layers:
        layer.store(rows, positions, keys, -keys)


@pytest.mark.parametrize("page", [PAGE, 16])
def test_rows_that_fork_truncate_and_close_hold_what_they_were_given(page: int) -> None:
    chance = random.Random(5)
    cache = PagedCache(CONFIG, rows=2, pages=1, page=page)  # it must grow
    held: dict[int, list[float]] = {}
    for _ in range(400):
        deed = chance.choice(["open", "write", "write", "write", "fork", "close", "undo"])
        row = chance.choice(list(held)) if held else None
        if deed == "open" and len(held) < 6:
            held[cache.open()] = []
        elif row is None:
            continue
        elif deed == "write" and len(held[row]) < 300:
            new = [chance.random() for _ in range(chance.choice([1, 1, 5, 60]))]
            write(cache, row, new)
            held[row] += new
        elif deed == "undo":
            new = [chance.random() for _ in range(chance.randint(1, 9))]
            write(cache, row, new)
            kept = chance.randint(0, len(new))
            held[row] += new[:kept]
            cache.truncate(row, len(held[row]))
        elif deed == "fork" and len(held) < 6:
            held[cache.fork(row)] = list(held[row])
        elif deed == "close":
            cache.close(row)
            del held[row]
        for number, numbers in held.items():
            assert cache.lengths[number] == len(numbers)
            for layer in cache.layers:
                # The last token may have been undone: what its window reached before it is gone.
                seen = numbers[1 - layer.window :] if layer.window else numbers
                key, value = layer.read(number, len(numbers) - len(seen), len(numbers))
                assert torch.equal(key[1, :, 3], torch.tensor(seen))
                assert torch.equal(value, -key)
    for row in list(held):
        cache.close(row)
    assert cache.used_pages == 0


def test_forks_share_pages_until_they_write() -> None:
    cache = PagedCache(CONFIG, rows=3, pages=9)
    row = cache.open()
    write(cache, row, [1.0] * (PAGE + 3))
    before = cache.used_pages
    copies = [cache.fork(row), cache.fork(row)]
    assert cache.used_pages == before
    write(cache, copies[0], [2.0])
    assert cache.used_pages == before + 2  # a page a kind of layer


@pytest.mark.parametrize("step", [1, 7])
def test_banded_layers_keep_their_window_alone(step: int) -> None:
    cache = PagedCache(CONFIG, rows=1, pages=9)
    row = cache.open()
    for _ in range(390 // step):
        write(cache, row, [0.5] * step)
    dense, banded = -(-390 // PAGE), -(-70 // PAGE) + 1
    assert cache.used_pages <= dense + banded + 1
