"""Speed of training by objective: share of the machine's peak, and tokens a second.

One shape without dropout, trained in one process by the steps that the stages run, in turn, so that
whatever else the machine does meets all of them. Operations are those of real tokens: padding
counts for nothing.

- pretraining: `training.language_model.training_step`, rows of one length, blocks compiled.
- masked prediction: `training.masked_lm.masked_step`, an encoder of the same shape, 15 % of the
  tokens hidden, blocks compiled.
- fine-tuning: `training.classification.accumulate_classifier_gradients` with the language model's
  loss (λ = 0.5), examples of all lengths from a quarter of a row to a whole one, blocks compiled
  once for all lengths.
- the same without the language model's loss (λ = 0), and besides with adapters of rank 16 in place
  of all weights: they save operations, so their tokens a second are what they gain.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from held import describe
from rich.console import Console
from rich.table import Table

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.corpus.masking import MaskedBatch
from lmsmith.models.adapters import AdapterConfig, adapt
from lmsmith.models.batching import epoch_batches
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.training.classification import EncodedExample, accumulate_classifier_gradients
from lmsmith.training.language_model import training_step
from lmsmith.training.machine import ResolvedMachine, measure_matrix_peak, prepare_process
from lmsmith.training.masked_lm import flops_per_token, masked_step
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Step = Callable[[int], tuple[int, float]]
"""A step of this number; its tokens and its operations."""

AIM = 0.85
HIDDEN = 0.15
ROWS = 32


def main(
    layers: Count = 6,
    width: Count = 512,
    length: Count = 128,
    vocabulary: Count = 8192,
    steps: Count = 6,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Speed by objective: pretraining, masked prediction, fine-tuning in three ways.

    Example: python benchmarks/objectives.py --json

    Args:
        layers: Blocks of the model.
        width: Its width; a head has 64.
        length: Tokens of a row.
        vocabulary: Tokens that it knows.
        steps: Steps of each objective after one to warm up; the fastest counts.
        threads: All cores if 0.
        json: Print one JSON object instead of the table.
    """
    machine = prepare_process(MachineConfig(threads=threads))
    shape = ModelConfig(
        layers=layers, width=width, heads=width // 64, context=length, vocabulary_size=vocabulary
    )
    makers = {
        "pretraining": pretraining,
        "masked prediction": masked_prediction,
        "fine-tuning": fine_tuning,
        "fine-tuning, λ = 0": partial(fine_tuning, lm_weight=0.0),
        "fine-tuning, λ = 0, adapters": partial(fine_tuning, lm_weight=0.0, rank=16),
    }
    objectives = {name: make(shape, machine) for name, make in makers.items()}
    status, best, peak = Console(stderr=True), dict.fromkeys(makers, 0.0), 0.0
    fastest = dict.fromkeys(makers, 0.0)
    for number in range(steps + 1):
        for name, step in objectives.items():
            started = time.perf_counter()
            tokens, operations = step(number)
            seconds = time.perf_counter() - started
            rate = operations / seconds / 1e9
            status.print(f"{name}: {rate:.0f} GFLOP/s{'' if number else ' (first step)'}")
            if number:
                best[name] = max(best[name], rate)
                fastest[name] = max(fastest[name], tokens / seconds)
        measure_matrix_peak.cache_clear()
        peak = max(peak, measure_matrix_peak(machine.precision, machine.device))
    rows = [
        {
            "objective": name,
            "gigaflops": rate,
            "share_of_peak": rate / peak,
            "to_pretraining": rate / best["pretraining"],
            "tokens_per_second": fastest[name],
            "to_fine_tuning": fastest[name] / fastest["fine-tuning"],
        }
        for name, rate in best.items()
    ]
    result = {"rows": rows, "peak_gigaflops": peak, "aim": AIM, "precision": machine.precision}
    result["machine"] = describe("native", machine.threads, [])
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


def pretraining(shape: ModelConfig, machine: ResolvedMachine) -> Step:
    decoder = Decoder(shape)
    decoder.initialise(torch.Generator().manual_seed(0))
    if machine.compile != "off":
        decoder.compile_blocks()
    flops = shape.training_flops_per_token()

    def batches(index: int) -> Batch:
        tokens = np.random.default_rng(index).integers(
            0, shape.vocabulary_size, (ROWS, shape.context + 1)
        )
        places = np.broadcast_to(np.arange(shape.context), (ROWS, shape.context)).copy()
        documents = np.zeros((ROWS, shape.context), np.int32)
        return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), documents, places)

    optimiser = adamw(decoder, decoder.blocks)
    step = training_step(decoder, batches, optimiser, lambda index: 1.0, machine, 4.0)

    def run(index: int) -> tuple[int, float]:
        step(index)
        return ROWS * shape.context, ROWS * shape.context * flops

    return run


def masked_prediction(shape: ModelConfig, machine: ResolvedMachine) -> Step:
    model = MaskedLM(MaskedLMConfig(replace(shape, causal=False, norm_position="post")))
    model.initialise(torch.Generator().manual_seed(0))
    if machine.compile != "off":
        model.decoder.compile_blocks()
    flops = flops_per_token(model, shape.context, HIDDEN)

    def batches(index: int) -> MaskedBatch:
        chance = np.random.default_rng(index)
        tokens = chance.integers(0, shape.vocabulary_size, (ROWS, shape.context))
        targets = np.where(chance.random(tokens.shape) < HIDDEN, tokens, NO_TARGET)
        lengths = np.full(ROWS, shape.context)
        return MaskedBatch(tokens, targets, np.zeros_like(tokens), lengths, None)

    optimiser = adamw(model, model.decoder.blocks)
    step = masked_step(model, batches, optimiser, lambda index: 1.0, machine, flops)

    def run(index: int) -> tuple[int, float]:
        step(index)
        return ROWS * shape.context, ROWS * shape.context * flops

    return run


def fine_tuning(
    shape: ModelConfig, machine: ResolvedMachine, lm_weight: float = 0.5, rank: int = 0
) -> Step:
    decoder = Decoder(shape)
    decoder.initialise(torch.Generator().manual_seed(0))
    model = Classifier(ClassifierConfig(model=shape, labels=("no", "yes"), length=shape.context),
                       decoder)  # fmt: skip
    model.initialise_head(torch.Generator().manual_seed(0))
    adapt(model, AdapterConfig(rank=rank), machine.dtype, 0)
    unused = 0.0 if lm_weight else 6.0 * shape.vocabulary_size * shape.width
    share = 2 / 3 if rank else 1.0  # frozen weights have no gradients
    if machine.compile != "off":
        decoder.compile_blocks(lengths_vary=True)
    else:
        decoder.attend_explicitly()
    optimiser = adamw(model, decoder.blocks)
    chance = np.random.default_rng(0)
    lengths = chance.integers(shape.context // 4, shape.context + 1, 64 * ROWS).tolist()
    examples = [
        EncodedExample([chance.integers(0, shape.vocabulary_size, n).tolist()], n % 2, 0.0, False)
        for n in lengths
    ]
    batches = epoch_batches(lengths, ROWS, 1, 0)

    def run(index: int) -> tuple[int, float]:
        model.train()
        chosen = [examples[i] for i in batches[index]]
        accumulate_classifier_gradients(model, chosen, machine, lm_weight)
        optimiser.step(1.0)
        return sum(each.length for each in chosen), share * sum(
            each.length * (shape.training_flops_per_token(each.length) - unused) for each in chosen
        )

    return run


def adamw(model: torch.nn.Module, blocks: torch.nn.Module) -> Optimiser:
    return Optimiser(model, OptimiserConfig(name="adamw"), matrices=[blocks])


def print_table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    table = Table(
        title=f"{machine['cpu']}, {machine['threads']} threads, {result['precision']}, "
        f"{machine['date']}",
        caption=f"peak of matrix products {result['peak_gigaflops']:.0f} GFLOP/s; wanted: "
        f"{AIM:.0%} of pretraining's share or more",
    )
    columns = (
        "objective",
        "GFLOP/s",
        "of peak",
        "of pretraining's",
        "tokens/s",
        "of fine-tuning's",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "objective" else "right")
    for row in result["rows"]:
        table.add_row(
            row["objective"],
            f"{row['gigaflops']:.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['to_pretraining']:.0%}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['to_fine_tuning']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
