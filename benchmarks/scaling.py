"""Pretraining in several processes of one thread each: speed, and whether the losses are the same.

    python benchmarks/scaling.py --processes 1 2 --json

Each number of processes pretrains the same model on the same made-up text by `lmsmith.run`, one
after the other, `--rounds` times in turn; the fastest median of a run's steps counts.
``efficiency`` is the speed of the most processes over that of the fewest, divided by the ratio of
their numbers.
``equal_losses``: every step's loss agrees to 1e-4. Other programs at work make both speeds wrong.
"""

from __future__ import annotations

import json as json_module
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro

import lmsmith
from lmsmith.runs.metrics_log import read_metrics

WORDS = ("the", "a", "dog", "cat", "river", "house", "runs", "sees", "old", "small", "and", "to")
TOLERANCE = 1e-4

RECIPE = """
seed = 1
[machine]
precision = "{precision}"
threads = 1
compile = "off"
[data]
documents = ["text.jsonl"]
splits.validation = 0.0
[tokenizer]
vocabulary_size = 512
[pretrain]
tokens = {tokens}
batch_tokens = {batch}
optimiser.name = "adamw"
model.layers = {layers}
model.width = {width}
model.heads = {heads}
model.context = 128
"""


def write_recipe(folder: Path, **settings: object) -> Path:
    """A recipe and its text, drawn by a seed."""
    chance = random.Random(0)
    lines = (" ".join(chance.choices(WORDS, k=120)) for _ in range(600))
    rows = [json_module.dumps({"text": text}) for text in lines]
    (folder / "text.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    path = folder / "scaling.toml"
    path.write_text(RECIPE.format(**settings), encoding="utf-8")
    return path


def measure(recipe: Path, folder: Path, processes: int) -> tuple[float, list[float]]:
    """The median of tokens a second after the first steps, and every step's loss."""
    lmsmith.run(str(recipe), folder=folder, processes=processes, quiet=True)
    rows = read_metrics(folder / "pretrain/metrics.jsonl")
    speed = statistics.median(row["tokens_per_second"] for row in rows[3:])
    return speed, [row["loss"] for row in rows]


def compare(speeds: dict[int, float], losses: dict[int, list[float]]) -> dict[str, Any]:
    """Efficiency, and the greatest difference of a step's loss."""
    fewest, most = min(speeds), max(speeds)
    differences = [
        abs(one - other)
        for each in losses.values()
        for one, other in zip(losses[fewest], each, strict=True)
    ]
    return {
        "tokens_per_second": speeds,
        "efficiency": speeds[most] / speeds[fewest] / (most / fewest),
        "greatest_difference": max(differences),
        "equal_losses": max(differences) <= TOLERANCE,
    }


def main(
    processes: tuple[int, ...] = (1, 2),
    layers: int = 4,
    width: int = 256,
    steps: int = 20,
    rows: int = 32,
    rounds: int = 2,
    precision: str = "fp32",
    json: bool = False,
) -> int:
    """Tokens a second of pretraining by number of processes.

    Args:
        processes: Numbers of them, each with one thread.
        layers: Of the model.
        width: Of the model; a head has 64.
        steps: Of a run.
        rows: Of a batch, 128 tokens each.
        rounds: The fastest of so many runs counts.
        precision: Of matrix products.
        json: Print one JSON object.
    """
    speeds: dict[int, float] = {}
    losses: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = rows * 128
        settings = {"layers": layers, "width": width, "heads": max(1, width // 64)}
        recipe = write_recipe(
            Path(folder), tokens=steps * batch, batch=batch, precision=precision, **settings
        )
        for turn in range(rounds):
            for count in processes:
                speed, found = measure(recipe, Path(folder) / f"{turn}-{count}", count)
                speeds[count] = max(speed, speeds.get(count, 0.0))
                losses[count] = found
    found_all = compare(speeds, losses)
    if json:
        print(json_module.dumps(found_all))
    else:
        for count, speed in speeds.items():
            print(f"{count} processes: {speed:,.0f} tokens/s")
        print(
            f"efficiency {found_all['efficiency']:.2f}, equal losses: {found_all['equal_losses']}"
        )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(tyro.cli(main))
