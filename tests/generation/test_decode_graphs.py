"""Recorded decode steps give the states of steps that run operation by operation.

No GPU records them here: `RecordedOperations` does, and repeats what was recorded with the contents
of another step.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmsmith.device import HOST
from lmsmith.generation import decode_graphs
from lmsmith.generation.decode_graphs import DecodeGraphs, graphs_for, power_of_two
from lmsmith.generation.device_kernels import DeviceKernels
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kernels import TorchKernels
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from recorded_operations import RecordedOperations

PAGE = 4
GPT = ModelConfig(2, 16, 2, 40, 30)
LLAMA = replace(
    GPT, layers=3, heads=4, kv_heads=2, positions="rotary", norm="rms", activation="swiglu",
    attention_pattern=("dense", "banded"), window=9,
)  # fmt: skip
SHAPES = {"GPT": GPT, "post-norm": replace(GPT, norm_position="post"), "Llama, banded": LLAMA}


def make_decoder(shape: ModelConfig) -> Decoder:
    decoder = Decoder(replace(shape, dropout=0.0))
    decoder.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for value in decoder.parameters():
            value.mul_(3.0)
    return decoder


class Side:
    """A model with rows of its own cache."""

    def __init__(self, decoder: Decoder, kernels: TorchKernels, *, recorded: bool = False) -> None:
        self.model = InferenceDecoder(decoder, kernels=kernels)
        if recorded:
            self.model.graphs = DecodeGraphs(HOST, RecordedOperations)
        self.cache = PagedCache(decoder.config, 8, 90, page=PAGE)

    def read(self, spans: Sequence[tuple[int, list[int]]]) -> Tensor:
        return self.model.logits(self.model.read(spans, self.cache))


@pytest.fixture(autouse=True)
def recorded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs, "STEPS_BEFORE", 1)


@pytest.mark.parametrize("name", SHAPES)
def test_recorded_steps_give_the_logits_of_plain_ones(name: str) -> None:
    """Random rows come and go, grow and fork; 2e-5 is float32's rounding of logits of about 10."""
    chance, decoder = random.Random(4), make_decoder(SHAPES[name])
    plain = Side(decoder, TorchKernels())
    sides = [plain, Side(decoder, DeviceKernels()), Side(decoder, DeviceKernels(), recorded=True)]
    rows: list[int] = []

    def same(calls: Callable[[PagedCache], object]) -> int:
        found = {calls(side.cache) for side in sides}
        (row,) = found
        return row if isinstance(row, int) else -1

    for _ in range(60):
        deed = chance.choice(["open", "close", "fork", "fork", "step", "step", "step"])
        if deed == "open" and len(rows) < 7:
            rows.append(same(PagedCache.open))
            prompt = [chance.randrange(30) for _ in range(chance.randint(2, 30))]
            for side in sides:
                side.read([(rows[-1], prompt)])
        elif deed == "close" and rows:
            row = rows.pop(chance.randrange(len(rows)))
            same(lambda cache, row=row: cache.close(row))  # type: ignore[misc]
        elif deed == "fork" and rows and len(rows) < 7:
            row = chance.choice(rows)
            rows.append(same(lambda cache, row=row: cache.fork(row)))  # type: ignore[misc]
        chosen = [row for row in rows if plain.cache.lengths[row] < 40 and chance.random() < 0.9]
        if deed == "step" and chosen:
            spans = [(row, [chance.randrange(30)]) for row in chosen]
            wanted, *found = [side.read(spans) for side in sides]
            for logits_nv in found:
                torch.testing.assert_close(logits_nv, wanted, atol=2e-5, rtol=1e-5)
    graphs = sides[2].model.graphs
    assert graphs is not None
    assert {replies for replies, _ in graphs.shapes} >= {2, 4, 8}
    assert {pages for _, pages in graphs.shapes} >= {4, 8}
    assert graphs.held_bytes > 0


def test_threads_record_one_after_another_and_may_ask_what_is_held() -> None:
    """Two models record at the same time, while a third thread asks both for their memory."""
    recording, most = list[int](), list[int]()

    class Slow(RecordedOperations):
        def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            recording.append(1)
            most.append(len(recording))
            time.sleep(0.005)
            try:
                return super().__call__(function)
            finally:
                recording.pop()

    sides = [Side(make_decoder(GPT), DeviceKernels()) for _ in range(2)]
    for side in sides:
        side.model.graphs = DecodeGraphs(HOST, Slow)

    def write(side: Side) -> None:
        rows = [side.cache.open() for _ in range(8)]
        for count in (1, 1, 2, 2, 4, 4, 8, 8):
            side.read([(row, [3]) for row in rows[:count]])

    def ask() -> int:
        return sum(side.model.held_bytes for side in sides)

    before = ask()
    with ThreadPoolExecutor(3) as threads:
        writing = [threads.submit(write, side) for side in sides]
        while not all(each.done() for each in writing):
            assert threads.submit(ask).result() >= before
        for each in writing:
            each.result()
    assert most == [1] * 8
    assert ask() > before


def test_a_cache_that_moves_has_new_graphs() -> None:
    side = Side(make_decoder(GPT), DeviceKernels(), recorded=True)
    graphs = side.model.graphs
    assert graphs is not None

    def write(cache: PagedCache) -> list[tuple[int, int]]:
        side.cache = cache
        row = cache.open()
        side.read([(row, [1, 2])])
        for token in range(2, 8):
            side.read([(row, [token])])
        return graphs.shapes

    assert write(PagedCache(GPT, 1, 9, page=PAGE)) == [(1, 1), (1, 2)]
    small = PagedCache(GPT, 1, 1, page=PAGE)
    assert write(small) == [(1, 2)], "the cache had one page: it grew, and moved"


def test_steps_with_much_to_read_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs, "MOST_PAGES", 1)
    side = Side(make_decoder(GPT), DeviceKernels(), recorded=True)
    row = side.cache.open()
    for token in range(9):
        side.read([(row, [token])])
    assert side.model.graphs is not None
    assert side.model.graphs.shapes == [(1, 1)]


def test_a_result_is_not_overwritten_by_the_next_step() -> None:
    side = Side(make_decoder(GPT), DeviceKernels(), recorded=True)
    row = side.cache.open()
    states = [side.model.read([(row, [token])], side.cache) for token in range(4)]
    assert side.model.graphs is not None
    assert side.model.graphs.shapes == [(1, 1)]
    assert not torch.equal(states[2], states[3])


def test_numbers_that_a_failed_row_left_reach_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention on a device reads whole pages: a masked NaN times 0 would be one."""
    monkeypatch.setattr("lmsmith.generation.kv_cache.is_host", lambda device: False)
    side = Side(make_decoder(GPT), DeviceKernels())
    rows = [side.cache.open() for _ in range(2)]
    side.read([(row, [3, 1, 4, 1, 5]) for row in rows])
    for layer in side.cache.layers:
        layer.values[1:] = layer.keys[1:] = float("nan")
    for row in rows:
        side.cache.close(row)
    rows = [side.cache.open() for _ in range(2)]
    side.read([(row, [2, 7, 1, 8, 2, 8]) for row in rows])
    assert side.read([(row, [1]) for row in rows]).isfinite().all()


@pytest.mark.parametrize("fault", ["item", "constant", "nonzero"])
def test_a_step_that_cannot_be_recorded_goes_on_without(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`RecordedOperations` refuses what a GPU would; one warning says it, and replies go on."""

    class Faulty(DeviceKernels):
        def gelu(self, x_ni: Tensor) -> Tensor:
            if fault == "item":
                x_ni = x_ni * min(1.0, x_ni.abs().max().item() + 1.0)
            elif fault == "constant":
                x_ni = x_ni * torch.tensor([1.0])
            else:
                x_ni[x_ni > 1e9] = 0.0
            return super().gelu(x_ni)

    decoder = make_decoder(replace(GPT, activation="gelu_tanh"))
    faulty, plain = Side(decoder, Faulty(), recorded=True), Side(decoder, TorchKernels())
    for side in (faulty, plain):
        side.cache.open()
    with caplog.at_level(logging.WARNING, "lmsmith.generation"):
        for token in range(6):
            found, wanted = (side.read([(0, [token])]) for side in (faulty, plain))
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    assert len(caplog.messages) == 1
    assert "without CUDA graphs" in caplog.text
    assert "not permitted while recording" in caplog.text


def test_a_number_that_python_knew_is_not_read_again() -> None:
    """What makes the tests above able to fail."""
    with torch.inference_mode():
        numbers, known = torch.zeros(2), [1.0]
        repeat, result = RecordedOperations()(lambda: numbers * 2 + known[0])
        assert result.tolist() == [1.0, 1.0]
        numbers[:], known[0] = 3.0, 100.0
        repeat()
        assert result.tolist() == [7.0, 7.0]


def test_graphs_are_for_cuda_and_steps_of_fixed_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.delenv("LMSMITH_CUDA_GRAPHS", raising=False)
    assert graphs_for(gpu, LLAMA) is not None
    assert graphs_for(HOST, LLAMA) is None
    assert graphs_for(gpu, replace(GPT, positions="sinusoidal")) is None
    assert graphs_for(gpu, replace(LLAMA, rope_scaling=RopeScaling("dynamic", 2.0, 20))) is None
    monkeypatch.setenv("LMSMITH_CUDA_GRAPHS", "0")
    assert graphs_for(gpu, LLAMA) is None
    assert [power_of_two(number) for number in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
