"""Fine-tuning on GLUE's tasks as GPT-1 did: our figures beside the paper's, and beside rules.

The paper's figures are of GLUE's test server, ours of the test files that the tasks name
(docs/finetuning.md). A task's figure is the mean over the seeds, with their range.
"""

from __future__ import annotations

import json as json_module
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

import lmsmith

Count = Annotated[int, tyro.conf.arg(metavar="N")]

GPT1 = {
    "sst2": ("accuracy", 91.3),
    "mrpc": ("f1", 82.3),
    "rte": ("accuracy", 56.0),
    "cola": ("matthews", 45.4),
    "stsb": ("pearson", 82.0),
}
"""Task → its measure, and GPT-1's figure (Radford et al. 2018, tables 2 and 4)."""


def main(
    model: str = "smollm2-135m",
    tasks: str = ",".join(GPT1),
    seeds: Count = 3,
    data: Path = Path("data"),
    out: Path = Path("evals/finetuning"),
    set: tuple[str, ...] = (),
    json: bool = False,
) -> int:
    """Fine-tune a model on each task with several seeds, and print one table.

    Example: python benchmarks/finetuning.py --data DATA --json

    Args:
        model: A registered name or a path.
        tasks: Tasks, with commas between.
        seeds: Runs of each task.
        data: Folder with the folder glue.
        out: The runs go here; what is done is not done again.
        set: Settings of the stage, e.g. adapter.rank=16 lm_weight=0.
        json: Print one JSON object instead of the table.
    """
    rows = [measured(model, task, seeds, data, out, set) for task in tasks.split(",")]
    if json:
        print(json_module.dumps({"model": model, "seeds": seeds, "tasks": rows}, indent=2))
        return 0
    table = Table("task", "measure", "GPT-1", "ours", "range", "ours / GPT-1", "words", "minutes")
    for row in rows:
        low, high = row["range"]
        table.add_row(
            row["task"],
            row["measure"],
            f"{row['gpt1']:.1f}",
            f"{row['ours']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{row['ours'] / row['gpt1']:.2f}",
            "–" if row["words"] is None else f"{row['words']:.1f}",
            f"{row['minutes']:.1f}",
        )
    Console().print(table)
    return 0


def measured(
    model: str, task: str, seeds: int, data: Path, out: Path, settings: tuple[str, ...]
) -> dict[str, Any]:
    """A task's row: figures in hundredths, and the minutes of one run."""
    measure, paper = GPT1[task]
    found, words, minutes = [], None, []
    for seed in range(seeds):
        started = time.perf_counter()
        run = lmsmith.finetune(
            model, task, data=data, out=out / f"{task}-{seed}", set=[*settings, f"seed={seed}"]
        )
        stage: Any = run.record["stages"]["finetune"]  # type: ignore[index]
        metrics = stage["metrics"]
        minutes.append((stage["wall_seconds"] or time.perf_counter() - started) / 60)
        found.append(100 * metrics[f"test_{measure}"])
        words = metrics.get(f"bag_of_words_{measure}")
    return {
        "task": task,
        "measure": measure,
        "gpt1": paper,
        "ours": statistics.fmean(found),
        "range": [min(found), max(found)],
        "words": None if words is None else 100 * words,
        "minutes": statistics.fmean(minutes),
    }


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
