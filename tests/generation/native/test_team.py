"""Threads that share out the steps of a call: late ones, more than processors, several callers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import llama
from lmsmith.training.machine import resolve_machine

THREADS = 5
"""More than the machine has processors for, so that some come late to most steps."""

CALLS = 60


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make() -> InferenceDecoder:
    torch.manual_seed(3)
    config = replace(llama(3, 64, 4, 2, 160, 256), vocabulary_size=256)
    machine = resolve_machine(MachineConfig(precision="bf16"))
    return InferenceDecoder(Decoder(config).eval(), machine, weights="model")


def states(model: InferenceDecoder, threads: int, prompt: list[int]) -> Tensor:
    """Hidden states of a prompt and of three tokens after it, in a new cache."""
    torch.set_num_threads(threads)
    cache = model.new_cache(1, 64)
    row = cache.open()
    parts = [prompt, *([token] for token in prompt[:3])]
    return torch.cat([model.read([(row, part)], cache) for part in parts])


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(250, (9 + i % 5,), generator=generator).tolist() for i in range(count)]


def test_late_threads_change_no_bit() -> None:
    model = make()
    for prompt in prompts(CALLS):
        assert torch.equal(states(model, THREADS, prompt), states(model, 1, prompt))


def test_a_late_thread_reads_nothing_of_a_model_that_is_gone() -> None:
    """The caller frees model and cache as soon as its call is over."""
    for prompt in prompts(CALLS):
        model = make()
        found = states(model, THREADS, prompt)
        del model
        gc.collect()
        assert bool(torch.isfinite(found).all())


def test_callers_at_the_same_time() -> None:
    model = make()
    each = prompts(CALLS)
    expected = [states(model, 1, prompt) for prompt in each]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda prompt: states(model, THREADS, prompt), each))
    assert all(map(torch.equal, found, expected))
