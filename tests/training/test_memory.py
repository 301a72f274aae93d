"""The traced memory of a training step against what PyTorch's allocator gives out in a real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import Batch
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training import memory
from lmsmith.training.language_model import training_step
from lmsmith.training.machine import resolve_machine
from lmsmith.training.memory import Step, step_memory, step_operations
from lmsmith.training.optimiser import Optimiser, OptimiserConfig
from lmsmith.training.sharding import divided

ROWS, LENGTH = 8, 288
GPT = ModelConfig(3, 96, 4, LENGTH, 700)
LLAMA = replace(
    GPT, norm="rms", positions="rotary", activation="swiglu", kv_heads=2, qkv_bias=False,
    ffn_bias=False, attention_output_bias=False,
)  # fmt: skip
BANDED = replace(GPT, layers=4, attention_pattern=("dense", "banded"), window=64)


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that the allocator had given out at once while something ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measured(step: Step, rows: int) -> dict[str, int]:
    """A real run's second step: bytes of weights and optimiser, and of all that it makes.

    Of several processes each measures its own, of a model in parts.
    """
    machine = resolve_machine(MachineConfig(precision="bf16", threads=1, sharding="on"))
    machine = replace(machine, precision="fp32" if step.dtype == torch.float32 else "bf16")
    whole = Decoder(step.config)
    whole.initialise(torch.Generator().manual_seed(0))
    whole.checkpoint_activations = step.checkpointed
    (decoder,) = divided(machine, whole)
    config = OptimiserConfig(name="muon" if step.muon else "adamw")
    optimiser = Optimiser(decoder, config, matrices=[decoder.blocks])
    tokens = np.random.default_rng(0).integers(0, 700, (rows, step.length))
    positions = np.tile(np.arange(step.length), (rows, 1))
    batch = Batch(tokens, tokens, np.zeros_like(tokens), positions)
    one = training_step(decoder, lambda _: batch, optimiser, lambda _: 1.0, machine, 4.0, step.rows)
    one(0)
    states = [v for part in optimiser.parts for kept in part.state.values() for v in kept.values()]
    found = {
        "weights": sum(each.nbytes for each in decoder.parameters()),
        "optimiser": sum(each.nbytes for each in states if each.ndim),
    }
    return {**found, "made": allocated(lambda: one(1))}


CASES = {
    "fp32": (Step(GPT, ROWS, LENGTH, dtype=torch.float32), ROWS),
    "bf16": (Step(GPT, ROWS, LENGTH), ROWS),
    "micro batches": (Step(GPT, 2, LENGTH, passes=2, dtype=torch.float32), ROWS),
    "checkpointed": (Step(GPT, ROWS, LENGTH, checkpointed=True), ROWS),
    "muon": (Step(GPT, 4, LENGTH, muon=True, dtype=torch.float32), 4),
    "llama": (Step(LLAMA, ROWS, LENGTH), ROWS),
    "banded": (Step(BANDED, ROWS, LENGTH, dtype=torch.float32), ROWS),
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_a_real_run_takes(case: str) -> None:
    """Promised is a tenth; it is a fiftieth here, where PyTorch's allocator alone is counted."""
    step, rows = CASES[case]
    planned, real = step_memory(step), measured(step, rows)
    assert planned.weights == real["weights"]
    assert planned.optimiser == real["optimiser"]
    made = planned.gradients + planned.copies + planned.activations
    assert made == pytest.approx(real["made"], rel=0.02)


def test_layers_that_repeat_are_counted_without_being_traced() -> None:
    for config, checkpointed in (
        (replace(GPT, layers=6), False),
        (replace(BANDED, layers=10), True),
    ):
        step = Step(config, 2, 128, passes=2, checkpointed=checkpointed)
        assert (step_memory(step), step_operations(step)) == memory._computed(step, 1)


def test_operations_of_several_passes_add_up() -> None:
    """From the second one on, each gradient is added to the one that is there."""
    one, two = (step_operations(Step(GPT, 2, 128, passes=passes)) for passes in (1, 2))
    assert 2 * one < two < 2.3 * one


def test_what_processes_divide() -> None:
    step = Step(GPT, 2, LENGTH, passes=2)
    alone, one_of_four = step_memory(step), step_memory(step, 4)
    assert one_of_four.weights == -(-alone.weights // 4)
    assert one_of_four.optimiser == -(-alone.optimiser // 4)
    assert one_of_four.gradients == pytest.approx(alone.gradients / 4, abs=200)
    assert one_of_four.activations == alone.activations
    body = sum(each.numel() for each in Decoder(GPT).blocks[0].parameters())
    root = alone.weights // 4 - GPT.layers * body
    assert one_of_four.gathered == 4 * root + 2 * 2 * body + max(8 * root, 6 * body)
    # The unembedding alone has a copy: blocks are gathered in bf16.
    assert one_of_four.copies < alone.copies / 2
