"""What a GPU does here: products, training, generation, and whether it agrees with the processor.

`lmsmith doctor --gpu` shows it. The figures are those that a run depends on: the share of the peak
in training GPT-2's smallest model (124M), and tokens a second of replies.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import Batch
from lmsmith.device import (
    HOST,
    available_devices,
    describe_device,
    device_memory,
    known_peak,
    reset_device_memory,
    synchronise,
)
from lmsmith.generation.decode_graphs import STEPS_BEFORE
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import PRESETS
from lmsmith.training.language_model import accumulate_gradients, packed_loss_sum
from lmsmith.training.machine import ResolvedMachine, matrix_peak, resolve_machine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

MODEL = "gpt2"


def missing_gpu() -> str:
    """Why there is nothing to check here; empty if there is a GPU."""
    here = [name for name in available_devices() if name != HOST.type]
    if here:
        return ""
    build = torch.version.cuda or "no CUDA"
    return f"no GPU: PyTorch {torch.__version__} (built with {build}) finds the processor alone"


def check_gpu(machine: ResolvedMachine | None = None) -> dict[str, Any]:
    """All figures of the device that ``auto`` takes, or of ``machine``'s; takes about a minute."""
    if machine is None:
        machine = resolve_machine(MachineConfig())
    shape = PRESETS[MODEL].config
    place = machine.place
    found: dict[str, Any] = {
        "device": str(place),
        "name": describe_device(place),
        "precision": machine.precision,
        "known_peak_gflops": known_peak(place, machine.dtype),
        "peak_gflops": round(matrix_peak(machine), 1),
        "difference_from_processor": difference(machine),
    }
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        found[f"training_{name}"] = training_speed(machine, shape, compiled=compiled)
    for graphs in (True, False):
        found["generation" if graphs else "generation_without_graphs"] = {
            str(streams): generation_speed(machine, shape, streams, graphs=graphs)
            for streams in (1, 64)
        }
    found["decode_graphs"] = graph_check(machine)
    return found


def random_batch(shape: ModelConfig, rows: int, seed: int = 0) -> Batch:
    """Rows of random tokens, each one document."""
    batch = Batch.empty(rows, shape.context)
    numbers = np.random.default_rng(seed)
    tokens = numbers.integers(shape.vocabulary_size, size=(rows, shape.context + 1))
    batch.tokens_bt[:], batch.targets_bt[:] = tokens[:, :-1], tokens[:, 1:]
    batch.positions_bt[:] = np.arange(shape.context)
    return batch


def random_decoder(shape: ModelConfig) -> Decoder:
    decoder = Decoder(replace(shape, dropout=0.0))
    decoder.initialise(torch.Generator().manual_seed(0))
    return decoder


def difference(machine: ResolvedMachine) -> float:
    """Relative difference of a small model's loss in float32, on the device and the processor."""
    shape = replace(PRESETS[MODEL].config, layers=2, width=128, heads=4, context=128)
    decoder, batch = random_decoder(shape), random_batch(shape, 2)
    with torch.no_grad():
        near = float(packed_loss_sum(decoder, batch))
        far = float(packed_loss_sum(machine.put(decoder), batch))
    return abs(far - near) / near


def training_speed(
    machine: ResolvedMachine,
    shape: ModelConfig,
    *,
    compiled: bool = False,
    rows: int = 16,
    steps: int = 10,
) -> dict[str, float]:
    """Tokens a second, share of the peak and memory of steps with AdamW; the median of them.

    The first two, which compile, do not count.
    """
    decoder = machine.put(random_decoder(shape)).train()
    if compiled:
        decoder.compile_blocks()
    optimiser, batch = Optimiser(decoder, OptimiserConfig()), random_batch(shape, rows)
    reset_device_memory(machine.place)
    seconds = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        accumulate_gradients(decoder, batch, machine)
        optimiser.step(1.0)
        synchronise(machine.place)
        seconds.append(time.perf_counter() - started)
    speed = batch.tokens_bt.size / statistics.median(seconds[2:])
    flops = speed * shape.training_flops_per_token() / 1e9
    return {
        "tokens_per_second": speed,
        "share_of_peak": flops / matrix_peak(machine),
        "memory_bytes": float(device_memory(machine.place) or 0),
    }


def graph_check(machine: ResolvedMachine) -> dict[str, Any]:
    """Decode steps of a small model in float32 with CUDA graphs beside such without.

    Returns:
        ``shapes``, replies and pages of each graph; ``difference``, the greatest of a logit;
        ``failure``, why steps were not recorded, or empty.
    """
    shape, replies = replace(PRESETS[MODEL].config, layers=2, width=128, heads=4, context=256), 5
    tokens, logits = random_batch(shape, replies).tokens_bt, []
    for graphs in (True, False):
        model = InferenceDecoder(random_decoder(shape), replace(machine, precision="fp32"))
        used = model.graphs if graphs else None
        model.graphs, cache = used, model.new_cache(replies, shape.context)
        rows = [cache.open() for _ in range(replies)]
        for row, tokens_t in zip(rows, tokens, strict=True):
            model.read([(row, tokens_t[: 9 + 9 * row].tolist())], cache)
        for step in range(50, 50 + 4 * STEPS_BEFORE):
            spans = [(row, [int(tokens[row, step])]) for row in rows]
            logits.append(model.logits(model.read(spans, cache)))
        if used is not None:
            found = {"shapes": used.shapes, "failure": used.failure}
        elif graphs:
            return {"shapes": [], "difference": 0.0, "failure": "this device has no CUDA graphs"}
    with_graphs, without = torch.stack(logits).chunk(2)
    return found | {"difference": float((with_graphs - without).abs().max())}


def generation_speed(
    machine: ResolvedMachine,
    shape: ModelConfig,
    streams: int,
    tokens: int = 128,
    *,
    graphs: bool = True,
) -> float:
    """Tokens a second of so many replies together; their prompts have 32 tokens."""
    model = InferenceDecoder(random_decoder(shape), machine)
    if not graphs:
        model.graphs = None
    prompts = random_batch(shape, streams).tokens_bt[:, :32].tolist()
    settings = SamplingSettings(tokens, temperature=1.0, seed=0)
    generate(model, prompts, replace(settings, max_new_tokens=2), machine=machine)
    started = time.perf_counter()
    replies = generate(model, prompts, settings, machine=machine)
    return sum(map(len, replies)) / (time.perf_counter() - started)


def describe_check(found: dict[str, Any]) -> dict[str, str]:
    """`check_gpu` in lines."""
    known = found["known_peak_gflops"]
    source = "its data sheet's" if known else "measured now"
    lines = {
        "GPU": f"{found['device']}, {found['name'] or 'the processor'}",
        "products": f"{found['precision']}, peak {found['peak_gflops'] / 1e3:,.1f} TFLOP/s "
        f"({source})",
        "agreement": f"a small model's loss in float32 differs from the processor's by "
        f"{found['difference_from_processor']:.1e}",
    }
    for name in ("eager", "compiled"):
        part = found[f"training_{name}"]
        lines[f"training {MODEL}, {name}"] = (
            f"{part['tokens_per_second']:,.0f} tokens/s, {part['share_of_peak']:.0%} of the peak, "
            f"{part['memory_bytes'] / 1e9:.1f} GB"
        )
    for streams, speed in found["generation"].items():
        without = found["generation_without_graphs"][streams]
        lines[f"writing {MODEL}, {streams} at once"] = (
            f"{speed:,.0f} tokens/s; {without:,.0f} without CUDA graphs"
        )
    graphs = found["decode_graphs"]
    lines["CUDA graphs"] = graphs["failure"] or (
        f"{len(graphs['shapes'])} recorded; a small model's logits in float32 differ by "
        f"{graphs['difference']:.1e} from those without"
    )
    return lines
