"""Values of a key that do not fit the memory: sorted on disk, read one by one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith.corpus.build import sorted_runs
from lmsmith.corpus.build.sorted_runs import in_order
from lmsmith.corpus.build.spill import read_pairs, spill_pairs

MEASURE = """
import resource, sys
from functools import partial
from pathlib import Path
from lmsmith.corpus.build import sorted_runs
from lmsmith.corpus.build.lines import later_ones
from lmsmith.corpus.build.local import reduce_task
from lmsmith.corpus.build.sorted_runs import in_order
from lmsmith.corpus.build.spill import spill_pairs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

sorted_runs.RUN_BYTES = 1 << 22
values = lambda: ([1, f"crawl/pages/{n * 7919 % 200_000:07d}", 17] for n in range(200_000))
folder = Path(sys.argv[1])
spill_pairs(folder / "warm", [(b"k", [1, "a", 1])], 1)
before = peak()
spill_pairs(folder / "in", ((b"k", value) for value in values()), 1)
reduce_task(folder / "out", [folder / "in"], 0, partial(later_ones, copies=1), 1)
assert sum(1 for _ in in_order(values())) == 200_000
print(peak() - before)
"""


def test_a_key_of_many_values_takes_little_memory(tmp_path: Path) -> None:
    """200,000 values: 90 MB as a list, here runs of 4 MiB and their blocks."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 45


@pytest.mark.parametrize("block", [1, 300, 1 << 15])
def test_runs_are_merged_in_order(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_runs, "RUN_BYTES", 40_000)
    monkeypatch.setattr(sorted_runs, "BLOCK_BYTES", block)
    draw = random.Random(block)
    pairs = [
        (draw.choice("aabc"), [draw.randrange(90), "x" * draw.randrange(9)]) for _ in range(3000)
    ]
    for number in range(3):
        spill_pairs(tmp_path / str(number), pairs[number::3], 2)
    files = [tmp_path / str(number) for number in range(3)]
    found = [[tuple(pair) for pair in read_pairs(files, number)] for number in range(2)]
    assert all(part == sorted(part) for part in found)
    assert sorted(found[0] + found[1]) == sorted(pairs)
    assert not {key for key, _ in found[0]} & {key for key, _ in found[1]}
    for count in (0, 1, 64, 3000):
        assert list(map(tuple, in_order(iter(pairs[:count])))) == sorted(pairs[:count])
