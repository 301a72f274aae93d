"""Training of a translator against a plain loop around torch.nn.Transformer, on equal shapes.

Both learn the same pairs with the same shape, dropout, label smoothing and Adam, take turns step by
step in one run, and have as many sentences a batch on average. The plain loop is the tutorials': it
draws sentences at random, pads them to the longest, and makes logits for all positions. Ours groups
sentences by length and puts no dropout on attention weights. Tokens that are no padding count, for
both; seconds are of the wall, and of the processor, which other programs disturb less.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.cli.output import print_json
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.parallel import EncodedPair, PairBatches, make_batch, read_parallel
from lmsmith.models.positions import SinusoidalPositions
from lmsmith.stages.translate import TranslateConfig, encode_pairs, make_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import keep_freed_memory, resolve_machine
from lmsmith.training.optimiser import Optimiser
from lmsmith.training.translation import pair_loss_sum

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Step = Callable[[int], int]
START = 0
MACHINE = resolve_machine(MachineConfig())
"""Both sides multiply in its precision: bf16 where the processor does."""


class PlainTransformer(nn.Module):
    """torch.nn.Transformer between a shared embedding and its transpose."""

    def __init__(self, config: TranslateConfig, vocabulary_size: int) -> None:
        super().__init__()
        shape = config.model
        self.embedding = nn.Embedding(vocabulary_size, shape.width)
        self.positions = SinusoidalPositions(shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.transformer = nn.Transformer(
            shape.width,
            shape.heads,
            shape.layers,
            shape.layers,
            shape.resolved_ffn_width,
            shape.dropout,
            batch_first=True,
        )

    def embed(self, tokens_bt: Tensor) -> Tensor:
        places = torch.arange(tokens_bt.shape[1])[None]
        scaled = self.embedding(tokens_bt) * math.sqrt(self.embedding.embedding_dim)
        embedded: Tensor = self.dropout(scaled + self.positions(places))
        return embedded

    def forward(self, source: Tensor, padded: Tensor, target: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
            tgt_is_causal=True,
        )
        return hidden @ self.embedding.weight.T


def plain_step(config: TranslateConfig, pairs: Sequence[EncodedPair], size: int, rows: int) -> Step:
    """A step of the plain loop; it returns the tokens that were no padding."""
    model, order = PlainTransformer(config, size), random.Random(1)
    rate = config.optimiser.learning_rate
    adam = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-9)

    def step(_: int) -> int:
        batch = make_batch(order.sample(pairs, rows), START)
        source, targets = torch.from_numpy(batch.source_bs), torch.from_numpy(batch.targets_bt)
        lengths = batch.lengths_b
        padded = torch.zeros_like(source, dtype=torch.bool)
        if lengths is not None:
            padded = torch.arange(source.shape[1])[None] >= torch.from_numpy(lengths)[:, None]
        with MACHINE.autocast():
            logits = model(source, padded, torch.from_numpy(batch.inputs_bt))
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=NO_TARGET,
            label_smoothing=config.label_smoothing,
        )
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        return batch.tokens

    return step


def our_step(config: TranslateConfig, batches: PairBatches, tokenizer: Tokenizer) -> Step:
    """The stage's own step."""
    model = make_model(config, tokenizer, 1).train()
    optimiser = Optimiser(model, config.optimiser)

    def step(index: int) -> int:
        batch = batches.batch(index)
        targets = int((batch.targets_bt != NO_TARGET).sum())
        with MACHINE.autocast():
            loss = pair_loss_sum(model, batch, config.label_smoothing) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(1.0)
        return batch.tokens

    return step


def main(
    *,
    source: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    target: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    steps: Count = 6,
    layers: Count = 3,
    width: Count = 256,
    vocabulary_size: Count = 8000,
    batch_tokens: Count = 4096,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Tokens a second of both, and their ratio.

    Example: python benchmarks/translation.py --source train.en.gz --target train.de.gz

    Args:
        source: Sentences, one a line.
        target: Their translations.
        steps: Steps that are measured, after one of each to warm up; the median counts.
        layers: Blocks of each side.
        width: Width of the model; the feed-forward layer has twice as much.
        vocabulary_size: Tokens of the joint vocabulary.
        batch_tokens: Target tokens of our batch.
        threads: Threads; PyTorch's choice if 0.
        json: Print one JSON object instead of the table.
    """
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(0)
    read, _ = read_parallel(source, target)
    tokenizer = Tokenizer.train((text for pair in read for text in pair), vocabulary_size)
    config = TranslateConfig(str(source), str(target), batch_tokens=batch_tokens)
    shape = replace(config.model, layers=layers, width=width, ffn_width=2 * width)
    config = replace(config, model=shape)
    model = make_model(config, tokenizer, 0)
    pairs, _ = encode_pairs(read, tokenizer, model.config)
    batches = PairBatches(pairs, batch_tokens, START, 1)
    rows = round(len(pairs) / batches.per_epoch)
    sides = {
        "lmsmith": our_step(config, batches, tokenizer),
        "torch.nn.Transformer": plain_step(config, pairs, tokenizer.vocabulary_size, rows),
    }
    speeds: dict[str, dict[str, list[float]]] = {s: {"wall": [], "processor": []} for s in sides}
    for index in range(steps + 1):
        for name, step in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            tokens = step(index)
            if index:
                speeds[name]["wall"].append(tokens / (time.perf_counter() - wall))
                speeds[name]["processor"].append(tokens / (time.process_time() - processor))
    medians = {
        name: {clock: statistics.median(found) for clock, found in clocks.items()}
        for name, clocks in speeds.items()
    }
    ours, theirs = medians.values()
    ratios = {clock: ours[clock] / theirs[clock] for clock in ours}
    result = {
        "threads": torch.get_num_threads(),
        "precision": MACHINE.precision,
        "parameters": model.config.parameters,
        "sentences_a_batch": rows,
        "tokens_per_second": medians,
        "ratio": ratios,
    }
    if json:
        print_json(result)
        return 0
    table = Table("", "tokens/s", "tokens per processor second")
    for name, found in medians.items():
        table.add_row(name, f"{found['wall']:,.0f}", f"{found['processor']:,.0f}")
    table.add_row("ratio", f"{ratios['wall']:.2f}", f"{ratios['processor']:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
