"""Pretraining tokens per second: lmsmith's own training step against transformers' GPT-2.

Each side lives in a process of its own and they take turns, a step each, so that whatever else
the machine does meets both. What each side gets:

- lmsmith: `training.language_model.training_step` as the pretrain stage runs it: the precision
  that `auto` chooses, compiled blocks, rows of packed documents with a mask. At the quickstart's
  shape its own batch and optimiser; at GPT-2's, AdamW.
- transformers: `GPT2LMHeadModel` in its default precision, float32, trained by the ordinary loop:
  `model(input_ids, labels=…)`, `loss.backward()`, AdamW's step, all cores. Dropout is off, as it is
  in lmsmith, and its process is left as it comes, or with `--tuned-peer` is measured once more with
  the allocator's settings that lmsmith gives its own.
"""

from __future__ import annotations

import json as json_module
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from lmsmith.models.config import ModelConfig

Side = Literal["ours", "peer", "tuned peer"]

GPT2_124M = ModelConfig(layers=12, width=768, heads=12, context=1024, vocabulary_size=50_257)

DOCUMENT_TOKENS = 300
"""Mean length of the random documents in a packed row."""

Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass(frozen=True)
class Task:
    """What is trained: a shape, a batch, and how many steps are timed after a first one."""

    model: ModelConfig
    rows: int
    optimiser: dict[str, Any]
    steps: int


def main(
    length: Count = 1024,
    rows: Count = 4,
    steps: Count = 3,
    only: Literal["gpt2_124m", "quickstart", "both"] = "both",
    tuned_peer: bool = False,
    json: bool = False,
) -> int:
    """Pretraining tokens per second against transformers, at GPT-2's size and the quickstart's.

    Example: python benchmarks/pretraining.py --json

    Args:
        length: Tokens of a row at GPT-2's size.
        rows: Rows of a batch at GPT-2's size; 4 of 1,024 tokens need 15 GB for both sides.
        steps: Steps timed at GPT-2's size, after one to warm up; the fastest counts.
        only: Measure just one of the two.
        tuned_peer: Measure transformers once more, with lmsmith's settings of the allocator.
        json: Print one JSON object instead of the table.
    """
    tasks: dict[str, Task] = {}
    if only != "quickstart":
        shape = replace(GPT2_124M, context=length)
        tasks["gpt2_124m"] = Task(shape, rows, {"name": "adamw"}, steps)
    if only != "gpt2_124m":
        tasks["quickstart"] = quickstart_task()
    results = {name: measure(name, task, tuned_peer) for name, task in tasks.items()}
    if json:
        print(json_module.dumps(results, indent=2))
    else:
        print_table(results)
    return 0


def quickstart_task() -> Task:
    """Shape, batch and optimiser of the shipped quickstart recipe."""
    from lmsmith.stages.pipeline import load_stage_recipe
    from lmsmith.stages.pretrain import PretrainConfig
    from lmsmith.stages.tokenizer import TokenizerConfig

    stages = load_stage_recipe("quickstart").stages
    pretrain, tokenizer = stages["pretrain"], stages["tokenizer"]
    assert isinstance(pretrain, PretrainConfig)
    assert isinstance(tokenizer, TokenizerConfig)
    shape = replace(pretrain.model, vocabulary_size=tokenizer.vocabulary_size)
    rows = pretrain.batch_tokens // shape.context
    return Task(shape, rows, asdict(pretrain.optimiser), 12)


def measure(name: str, task: Task, tuned_peer: bool) -> dict[str, float]:
    """The fastest of alternating steps, each side in its own process."""
    status = Console(stderr=True)
    sides: list[Side] = ["ours", "peer"] + (["tuned peer"] if tuned_peer else [])
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    peak = 0.0
    workers = {side: Worker(side, task) for side in sides}
    try:
        for number in range(task.steps + 1):
            for side, worker in workers.items():
                took = worker.ask("step")
                status.print(
                    f"{name}: {side}: {'first step' if not number else 'step'} {took:.2f} s"
                )
                if number:
                    seconds[side].append(took)
            peak = max(peak, workers["ours"].ask("peak"))
    finally:
        for worker in workers.values():
            worker.stop()
    tokens = task.rows * task.model.context
    speed = {side: tokens / min(found) for side, found in seconds.items()}
    flops = task.model.training_flops_per_token()
    result = {
        "ours_tokens_per_second": speed["ours"],
        "peer_tokens_per_second": speed["peer"],
        "ratio": speed["ours"] / speed["peer"],
        "share_of_peak": speed["ours"] * flops / (peak * 1e9),
        "peak_gflops": peak,
        "batch_tokens": float(tokens),
        "parameters": float(task.model.parameters),
    }
    if tuned_peer:
        result["tuned_peer_tokens_per_second"] = speed["tuned peer"]
        result["tuned_ratio"] = speed["ours"] / speed["tuned peer"]
    return result


class Worker:
    """A process that trains one side, a step whenever it is asked for."""

    def __init__(self, side: Side, task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, side, task), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> float:
        """Seconds of a step, or the machine's peak in GFLOP/s."""
        self._connection.send(what)
        try:
            answer: float = self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit("a side ended early; too little memory? try --rows 2") from None
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def serve(connection: Connection, side: Side, task: Task) -> None:
    """A worker's life: build, then answer until the other end closes."""
    step, peak = our_step(task) if side == "ours" else peer_step(task, tuned=side == "tuned peer")
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        if what == "peak":
            connection.send(peak())
            continue
        started = time.perf_counter()
        step()
        connection.send(time.perf_counter() - started)


def our_step(task: Task) -> tuple[Callable[[], object], Callable[[], float]]:
    """The pretrain stage's step."""
    import torch

    from lmsmith.core.recipe import MachineConfig
    from lmsmith.models.decoder import Decoder
    from lmsmith.training.language_model import training_step
    from lmsmith.training.machine import measure_matrix_peak, prepare_process
    from lmsmith.training.optimiser import Optimiser, OptimiserConfig

    machine = prepare_process(MachineConfig())
    decoder = Decoder(task.model)
    decoder.initialise(torch.Generator().manual_seed(0))
    if machine.compile != "off":
        decoder.compile_blocks()
    optimiser = Optimiser(decoder, OptimiserConfig(**task.optimiser), matrices=[decoder.blocks])
    step = training_step(
        decoder,
        lambda index: packed_batch(task, index),
        optimiser,
        lambda index: 1.0,
        machine,
        bytes_per_token=4.0,
    )
    number = iter(range(1 << 30))

    def peak() -> float:
        measure_matrix_peak.cache_clear()
        return measure_matrix_peak(machine.precision, machine.device)

    return lambda: step(next(number)), peak


def peer_step(task: Task, *, tuned: bool) -> tuple[Callable[[], object], Callable[[], float]]:
    """The ordinary loop around transformers' GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    if tuned:
        from lmsmith.training.machine import keep_freed_memory

        keep_freed_memory()
    shape = task.model
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary_size,
            n_positions=shape.context,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    number = iter(range(1 << 30))

    def step() -> None:
        tokens = torch.from_numpy(packed_batch(task, next(number)).tokens_bt)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()

    return step, lambda: 0.0


def packed_batch(task: Task, number: int) -> Any:
    """Random documents packed into rows, the same for both sides."""
    from lmsmith.corpus.batches import Batch

    chance = np.random.default_rng(number)
    length, shape = task.model.context, (task.rows, task.model.context)
    tokens_bt = chance.integers(0, task.model.vocabulary_size, shape)
    begins_bt = chance.random(shape) < 1.0 / DOCUMENT_TOKENS
    begins_bt[:, 0] = True
    documents_bt = begins_bt.cumsum(axis=1).astype(np.int32)
    columns_bt = np.broadcast_to(np.arange(length), shape)
    first_bt = np.maximum.accumulate(np.where(begins_bt, columns_bt, 0), axis=1)
    targets_bt = np.roll(tokens_bt, -1, axis=1)
    return Batch(tokens_bt, targets_bt, documents_bt, columns_bt - first_bt)


def print_table(results: dict[str, dict[str, float]]) -> None:
    peak = max(result["peak_gflops"] for result in results.values())
    tuned = any("tuned_ratio" in result for result in results.values())
    table = Table(
        title="Pretraining: tokens per second, fastest step",
        caption=f"share of the measured peak of matrix products, {peak:,.0f} GFLOP/s"
        + ("; tuned: transformers with lmsmith's settings of the allocator" if tuned else ""),
    )
    columns = ["model", "batch", "lmsmith", "transformers", "ratio", "of peak"]
    for column in [*columns, "tuned ratio"] if tuned else columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name, result in results.items():
        cells = [
            f"{name} ({result['parameters'] / 1e6:.1f}M)",
            f"{result['batch_tokens']:,.0f}",
            f"{result['ours_tokens_per_second']:,.0f}",
            f"{result['peer_tokens_per_second']:,.0f}",
            f"{result['ratio']:.2f}×",
            f"{result['share_of_peak']:.0%}",
        ]
        table.add_row(*cells, *([f"{result['tuned_ratio']:.2f}×"] if tuned else []))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
