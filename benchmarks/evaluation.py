"""How fast multiple-choice items are scored: `lmsmith eval` beside lm-evaluation-harness.

The same items, written out the same way, are asked of the same weights (a transformers folder that
`lmsmith export` writes), without shots and after a block of fixed ones, in fp32 and in bf16. Each
side lives in a process of its own with the same threads, and they take turns, a part of the items
each, so that whatever else the machine does meets both. What each side gets:

- lmsmith: `evaluate_task`, as `lmsmith eval --fixed-shots` runs it. Its time is that of the whole
  call: reading the data, drawing shots, scoring, saving every item, intervals.
- lm-eval: `simple_evaluate` with its own `HFLM` over transformers, with the fastest of several
  batch sizes, tried on other items of the same files. Its time is that of `HFLM.loglikelihood`
  alone, so that what its task loader takes does not count against it; the whole call's is printed
  beside.

A process's start (imports, weights) and a first few items, with which both sides warm up, are timed
by themselves. Equal means: in fp32 every choice's log-likelihood within `FP32_NATS` and the same
accuracies; in bf16, where the two round at different places, within `BF16_NATS` on average, and as
many right but for `BF16_SHARE` of the items, or `BF16_ITEMS` where that is more.

The floor is the time that the machine's matrix products, measured in the same run, would take for
what cannot be left out: each distinct prefix of the items' tokens through the layers once, and each
distinct place before a choice's token through the vocabulary once.
"""

from __future__ import annotations

import json as json_module
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from scored import OURS, PEER, Job, Part, Precision, Scored, our_side, own_task, peer_side, task_of

Count = Annotated[int, tyro.conf.arg(metavar="N")]

WARM_UP = {"zero": 48, "few": 12}
"""Items that both sides are asked before anything counts, and on which the peer chooses the size of
its batches: more than one of its largest."""

POOL = 64
"""Rows of each file, its last, that shots are drawn from; they are no items."""

FP32_NATS, BF16_NATS, BF16_ITEMS, BF16_SHARE = 1e-3, 0.5, 2, 0.03

BARS = {"zero": 3.0, "few": 6.0}
"""How many times as fast as lm-eval, without shots and with."""


def main(
    data: Path,
    model: str = "smollm2-135m",
    tasks: tuple[str, ...] = ("openbook_qa", "arc_easy"),
    items: Count = 500,
    few_items: Count = 48,
    shots: Count = 8,
    turns: Count = 2,
    precisions: tuple[Precision, ...] = ("bf16", "fp32"),
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Seconds for the same multiple-choice items through lm-eval and through lmsmith.

    Example: python benchmarks/evaluation.py --data DATA --json

    Args:
        data: A folder as of `lmsmith eval --data`, with the tasks' files.
        model: A name or a path.
        tasks: Of multiple choice; the items are of all in equal shares.
        items: Without shots.
        few_items: With shots; 0 leaves these out.
        shots: Of the fixed block.
        turns: Parts of the items, between which the sides change.
        precisions: Of matrix products.
        threads: Of both sides; all cores if 0.
        json: Print one JSON object instead of the table.
    """
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        work = write_parts(
            data, Path(folder), tasks, {"zero": items, "few": few_items}, shots, turns
        )
        exported = export_model(model, Path(folder) / "model")
        result: dict[str, Any] = {
            "model": model,
            "tasks": list(tasks),
            "shots": shots,
            "threads": threads,
            "precisions": {
                precision: measure(exported, precision, threads, work) for precision in precisions
            },
        }
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0 if all(each["equal"] for _, _, each in cases(result)) else 1


def export_model(model: str, folder: Path) -> str:
    from lmsmith.catalogue.export import export
    from lmsmith.catalogue.reading import read_model

    return str(export(read_model(model), folder, "hf").path)


def write_parts(
    data: Path, folder: Path, tasks: Sequence[str], counts: dict[str, int], shots: int, turns: int
) -> dict[str, list[Part]]:
    """The items of each case, turn by turn; those of ``warm-zero`` and ``warm-few`` come first."""
    from lmsmith.evaluation.tasks.data import read_data

    work: dict[str, list[Part]] = {}
    for name in tasks:
        rows = [dict(item.fields) for item in read_data(task_of(name), [data]).items]
        items, pool = rows[:-POOL], rows[-POOL:]
        write_rows(folder / f"{name}-pool.jsonl", pool)
        for case, count in counts.items():
            share, number = count // len(tasks), shots if case == "few" else 0
            if share > len(items):
                sys.exit(f"{name} has {len(items)} items, fewer than {share}: lower --items")
            for turn in range(turns if share else 0):
                part = Part(name, str(folder), f"{name}-{case}-{turn}", number)
                work.setdefault(case, []).append(write_part(part, items[turn:share:turns]))
            if share and name == tasks[0]:
                part = Part(name, str(folder), f"{name}-warm-{case}", number)
                work[f"warm-{case}"] = [write_part(part, items[-WARM_UP[case] :])]
    for parts in work.values():
        parts.sort(key=lambda part: int(part.name.rpartition("-")[2]) if len(parts) > 1 else 0)
    return work


def write_part(part: Part, rows: Sequence[dict[str, Any]]) -> Part:
    """The rows as they are, and with their prompts written out."""
    from lmsmith.evaluation.tasks.data import read_data
    from lmsmith.evaluation.tasks.prompts import choose_shots, with_shots
    from lmsmith.evaluation.tasks.spec import TaskSetting

    write_rows(part.own_rows, rows)
    task, setting = own_task(part), TaskSetting(part.shots, fixed=True)
    read = read_data(task, [Path(part.folder)])
    asked = [
        with_shots(task, item, choose_shots(None, task, setting, item, read.pool))  # type: ignore[arg-type]
        for item in read.items
    ]
    write_rows(
        part.peer_rows,
        [{"context": q.contexts[0], "choices": list(q.choices), "gold": q.gold} for q in asked],
    )
    return part


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json_module.dumps(row) + "\n" for row in rows))


def measure(
    model: str, precision: Precision, threads: int, work: dict[str, list[Part]]
) -> dict[str, Any]:
    """Both sides on all cases in one precision."""
    status = Console(stderr=True)
    workers, result = {}, {"start_seconds": {}, "warm_up_seconds": {}, "cases": {}}
    try:
        for side in (OURS, PEER):
            started = time.perf_counter()
            workers[side] = Worker(Job(side, model, precision, threads))
            workers[side].ask("ready")
            result["start_seconds"][side] = time.perf_counter() - started
        for case in BARS:
            if case not in work:
                continue
            found: dict[str, list[Scored]] = {side: [] for side in workers}
            peak = 0.0
            for part in work[f"warm-{case}"]:
                for side, worker in workers.items():
                    took = worker.ask("warm", part)
                    result["warm_up_seconds"].setdefault(case, {})[side] = took
            for part in work[case]:
                for side, worker in workers.items():
                    scored = worker.ask("score", part)
                    found[side].append(scored)
                    status.print(f"{precision}: {part.name}: {side}: {scored.seconds:.2f} s")
                peak = max(peak, workers[OURS].ask("peak"))
            operations = sum(workers[OURS].ask("operations", part) for part in work[case])
            figures = compared(found, precision, operations, peak)
            figures["peer_batch"] = workers[PEER].ask("batch")
            result["cases"][case] = figures
    finally:
        for worker in workers.values():
            worker.stop()
    return result


def compared(
    found: dict[str, list[Scored]], precision: Precision, operations: float, peak: float
) -> dict[str, Any]:
    """The ratio, whether the results are equal, and how near the floor is."""
    ours, peer = found[OURS], found[PEER]
    seconds = {side: sum(each.seconds for each in parts) for side, parts in found.items()}
    items = sum(len(each.log_probs) for each in ours)
    differences = [
        abs(left - right)
        for mine, theirs in zip(ours, peer, strict=True)
        for row, other in zip(mine.log_probs, theirs.log_probs, strict=True)
        for left, right in zip(row, other, strict=True)
    ]
    accuracies = {
        side: {
            "accuracy": sum(each.accuracy for each in parts) / items,
            "accuracy_per_character": sum(each.accuracy_per_character for each in parts) / items,
        }
        for side, parts in found.items()
    }
    apart = max(abs(accuracies[OURS][n] - accuracies[PEER][n]) for n in accuracies[OURS])
    worst, mean = max(differences), sum(differences) / len(differences)
    if precision == "fp32":
        equal = worst <= FP32_NATS and apart == 0
    else:
        allowed = max(BF16_ITEMS, BF16_SHARE * items)
        equal = mean <= BF16_NATS and round(apart * items) <= allowed
    return {
        "items": items,
        "requests": len(differences),
        "seconds": seconds,
        "lm_eval_whole_seconds": sum(each.whole for each in peer),
        "ratio": seconds[PEER] / seconds[OURS],
        "processor_ratio": sum(each.cpu for each in peer) / sum(each.cpu for each in ours),
        "accuracies": accuracies,
        "largest_difference_nats": worst,
        "mean_difference_nats": mean,
        "equal": equal,
        "peak_gflops": peak,
        "needed_gflop": operations / 1e9,
        "floor_seconds": operations / (peak * 1e9),
        "share_of_floor": operations / (peak * 1e9) / seconds[OURS],
    }


class Worker:
    """A process of one side, which does what it is asked."""

    def __init__(self, job: Job) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, part: Part | None = None) -> Any:
        self._connection.send((what, part))
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit("a side ended early; its error is above") from None

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def serve(connection: Connection, job: Job) -> None:
    """A worker's life: load, then answer until the other end closes."""
    answers = (our_side if job.side == OURS else peer_side)(job)
    while True:
        try:
            what, part = connection.recv()
        except EOFError:
            return
        connection.send(answers[what](part))


def cases(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for precision, found in result["precisions"].items():
        for case, figures in found["cases"].items():
            yield precision, case, figures


def print_table(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['model']}, {result['threads']} threads: {' + '.join(result['tasks'])}"
    )
    table.add_column("")
    columns = []
    for precision, case, found in cases(result):
        of_precision = result["precisions"][precision]
        shots = "no shots" if case == "zero" else f"{result['shots']} fixed shots"
        table.add_column(f"{precision}, {shots}", justify="right")
        accuracies = (
            [f"{100 * found['accuracies'][side][name]:.1f} %" for side in (OURS, PEER)]
            for name in ("accuracy", "accuracy_per_character")
        )
        warm, start = of_precision["warm_up_seconds"][case], of_precision["start_seconds"]
        columns.append(
            {
                "items (requests)": f"{found['items']} ({found['requests']})",
                "lm-eval": f"{found['seconds'][PEER]:.2f} s",
                "its best batch": f"{found['peer_batch']}",
                "with its task loader": f"{found['lm_eval_whole_seconds']:.2f} s",
                "lmsmith": f"{found['seconds'][OURS]:.2f} s",
                "ratio": f"{found['ratio']:.2f}×",
                "wanted": f"{BARS[case]:g}×",
                "ratio of processor time": f"{found['processor_ratio']:.2f}×",
                "floor": f"{found['floor_seconds']:.2f} s",
                "at a matrix peak of": f"{found['peak_gflops']:,.0f} GFLOP/s",
                "lmsmith, of floor": f"{found['share_of_floor']:.0%}",
                "accuracy (lmsmith, lm-eval)": ", ".join(next(accuracies)),
                "per character": ", ".join(next(accuracies)),
                "log-likelihoods apart, most": f"{found['largest_difference_nats']:.2g} nats",
                "on average": f"{found['mean_difference_nats']:.2g} nats",
                "equal": "yes" if found["equal"] else "NO",
                "start (lmsmith, lm-eval)": f"{start[OURS]:.1f} s, {start[PEER]:.1f} s",
                "first items": f"{warm[OURS]:.1f} s, {warm[PEER]:.1f} s",
            }
        )
    for name in columns[0] if columns else ():
        table.add_row(name, *(column[name] for column in columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
