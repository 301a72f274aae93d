"""How fast SmolLM2-135M writes: lmsmith against transformers, and llama.cpp where it is installed.

Each side lives in a process of its own with the same threads, and they take turns, so that whatever
else the machine does meets all of them. What each side gets:

- lmsmith: `Engine`, as `lmsmith chat` uses it, greedy, with the file's own 4 bits, with bf16
  weights and with int8 ones.
- transformers: its Llama with the same weights in bf16, `generate(do_sample=False)` with its own
  cache.
- llama.cpp: its server by `xllamacpp`, if it can be imported, with the file's own 4 bits and with
  8 bits (Q8_0, written by `lmsmith export`); one stream alone.

All write random prompts of the same lengths, and none stops before its time. A reply's first token
reads the prompt: it is timed by itself, from the call to the token, and the others from there on.
The floor is the reading of all weights once a token at the memory speed measured beside it. Memory
is what the side's process holds after its turns, and what it holds beyond its imports.

With ``--draft`` speculative decoding is measured instead: the same greedy replies with and without
the draft, in turn, one stream, for a question whose reply copies from it and for an open one.
"""

from __future__ import annotations

import importlib.util
import json as json_module
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
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

OURS, OURS_PACKED, PEER_PACKED = "lmsmith bf16", "lmsmith 4 bits", "llama.cpp 4 bits"
EIGHT = "llama.cpp 8 bits"
RATIOS = {
    "one_stream_bf16_ratio": ("one", "transformers", OURS),
    "one_stream_int8_ratio": ("one", "transformers", "lmsmith int8"),
    "batch16_ratio": ("batch16", "transformers", OURS),
    "first_token_ratio": ("first", "transformers", OURS),
    "batch16_4_bits_ratio": ("batch16", "transformers", OURS_PACKED),
    "one_stream_4_bits_to_llama_cpp": ("one", PEER_PACKED, OURS_PACKED),
    "first_token_4_bits_to_llama_cpp": ("first", PEER_PACKED, OURS_PACKED),
}
"""Name → task, peer and our side."""
PROMPT, FIRST_PROMPT, BATCH = 32, 512, 16
TASKS = ("one", "batch16", "first")
PASSAGE = """The lighthouse at Cape Henry was the first one that the new government paid for. It was
finished in 1792 and burned whale oil in eight lamps. Its keeper climbed 191 steps every evening."""
QUESTIONS = {
    "copies": f"Repeat the following text word for word, three times.\n\n{PASSAGE}",
    "open": "Write a story about a lighthouse and a storm.",
}
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
    processor_time: bool

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds of this process: of its processors, or of the wall."""
        return time.process_time if self.processor_time else time.perf_counter


def main(
    gguf: Path | None = None,
    tokens: Count = 48,
    rounds: Count = 4,
    threads: Count = 0,
    draft: str = "",
    only: str = "",
    processor_time: bool = False,
    json: bool = False,
) -> int:
    """Tokens a second of SmolLM2-135M, alone and in a batch, against named peers.

    Example: python benchmarks/generation.py --json

    Args:
        gguf: SmolLM2's GGUF file; that of `lmsmith pull smollm2-135m` if it is left out.
        tokens: Tokens of every reply.
        rounds: How often each side has its turn; its fastest counts.
        threads: Of every side; all cores if 0.
        draft: Measure speculative decoding with this draft alone: prompt-lookup, or a model.
        only: These sides alone, separated by commas, one of lmsmith among them.
        processor_time: Count the seconds of the processors, with --threads 1 on a busy machine.
        json: Print one JSON object instead of the table.
    """
    path = gguf or find_gguf()
    threads = threads or os.cpu_count() or 1
    if draft:
        gain = speculation(path, draft, tokens, rounds, threads)
        print(json_module.dumps(gain, indent=2)) if json else print_speculation(gain, threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = dict.fromkeys((OURS, "lmsmith int8", OURS_PACKED, "transformers"), path)
        if importlib.util.find_spec("xllamacpp"):
            files |= {PEER_PACKED: path}
            if not only or EIGHT in only:
                files |= {EIGHT: eight_bits(path, folder)}
        wanted = only.split(",") if only else [*files]
        jobs = [Job(side, str(files[side]), threads, tokens, processor_time) for side in wanted]
        starts: list[float] = []
        seconds = measure(jobs, rounds, lambda: starts.append(cold_start(path)))
    result = figures(seconds, tokens)
    result["cold_start_seconds"] = min(starts)
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result, threads)
    return 0


def find_gguf() -> Path:
    """The file that ``lmsmith pull smollm2-135m`` fetched, or that LMSMITH_TEST_GGUF names."""
    from lmsmith.catalogue.resolve import resolve
    from lmsmith.core.errors import UserError

    try:
        return resolve(os.environ.get("LMSMITH_TEST_GGUF", "smollm2-135m")).path
    except UserError as error:
        sys.exit(f"{error}\nfetch it: lmsmith pull smollm2-135m; or name a file with --gguf")


def eight_bits(path: Path, folder: str) -> Path:
    """The same model for llama.cpp in Q8_0."""
    from lmsmith.catalogue.export import export
    from lmsmith.catalogue.reading import read_model

    return export(read_model(path), Path(folder), "gguf", "q8_0").path


def measure(
    jobs: list[Job], rounds: int, after_round: Callable[[], None]
) -> dict[str, dict[str, list[float]]]:
    """Side → task → seconds of each of its turns; a turn before them warms up."""
    status = Console(stderr=True)
    seconds: dict[str, dict[str, list[float]]] = {job.side: {} for job in jobs}
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
                        seconds[side].setdefault(task, []).append(took)
            after_round()
        for side, worker in workers.items():
            for what in ("bytes", "imports", "resident"):
                seconds[side][what] = [worker.ask(what) or 0.0]
        ours = next(side for side in workers if side.startswith("lmsmith"))
        seconds[ours]["bandwidth"] = [workers[ours].ask("bandwidth") or 0.0]
    finally:
        for worker in workers.values():
            worker.stop()
    return seconds


def figures(seconds: dict[str, dict[str, list[float]]], tokens: int) -> dict[str, Any]:
    """Tokens a second and ratios, of each side's fastest turns; and the ratios of their medians."""
    best = {
        side: {task: min(all_) for task, all_ in found.items()} for side, found in seconds.items()
    }
    usual = {
        side: {task: statistics.median(all_) for task, all_ in found.items()}
        for side, found in seconds.items()
    }
    bandwidth = next(found["bandwidth"] for found in best.values() if "bandwidth" in found)
    sides: dict[str, dict[str, float]] = {}
    for side, found in best.items():
        one = (tokens - 1) / found["one"]
        sides[side] = {"one_stream_tokens_per_second": one}
        if "batch16" in found:
            sides[side]["batch16_tokens_per_second"] = BATCH * (tokens - 1) / found["batch16"]
        if "first" in found:
            sides[side]["first_token_seconds"] = found["first"]
        sides[side]["share_of_memory_floor"] = one * found["bytes"] / bandwidth
        sides[side]["resident_bytes"] = found["resident"]
        sides[side]["resident_bytes_beyond_imports"] = found["resident"] - found["imports"]
    return {
        **ratios(best),
        "of_medians": ratios(usual),
        "memory_gigabytes_per_second": bandwidth / 1e9,
        "llama_cpp": any(side.startswith("llama.cpp") for side in sides),
        "sides": sides,
        "seconds": seconds,
    }


def ratios(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """The peers' seconds to ours, of the sides that are here."""
    return {
        name: seconds[peer][task] / seconds[ours][task]
        for name, (task, peer, ours) in RATIOS.items()
        if peer in seconds and ours in seconds
    }


def speculation(
    path: Path, draft: str, tokens: int, rounds: int, threads: int
) -> dict[str, dict[str, float]]:
    """Question → tokens a second with and without the draft, of the fastest turns; the ratio."""
    import torch

    import lmsmith
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import SamplingSettings

    torch.set_num_threads(threads)
    model = lmsmith.load(path, machine=MachineConfig(precision="bf16"), draft=draft)
    drafts = {"without": None, "with": model.draft}
    settings, found = SamplingSettings(tokens, temperature=0), {}
    for name, question in QUESTIONS.items():
        prompt = model.prompt([{"role": "user", "content": question}], settings).tokens
        fastest = dict.fromkeys(drafts, float("inf"))
        for _ in range(rounds + 1):
            for way, model.draft in drafts.items():
                reply = iter(model.write_tokens(prompt, settings))
                next(reply)  # reads the prompt
                started = time.perf_counter()
                count = sum(1 for _ in reply)
                fastest[way] = min(fastest[way], (time.perf_counter() - started) / count)
        found[name] = {way: 1 / seconds for way, seconds in fastest.items()}
        found[name]["ratio"] = fastest["without"] / fastest["with"]
    return found


def print_speculation(gain: dict[str, dict[str, float]], threads: int) -> None:
    table = Table(title=f"SmolLM2-135M bf16, {threads} threads, one stream: tokens a second")
    table.add_column("reply")
    for column in ("without draft", "with draft", "ratio"):
        table.add_column(column, justify="right")
    for name, found in gain.items():
        row = (f"{found['without']:.1f}", f"{found['with']:.1f}", f"{found['ratio']:.2f}×")
        table.add_row(name, *row)
    Console().print(table)


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
    make = {"transformers": their_tasks, "llama.cpp": llama_tasks, "lmsmith": our_tasks}
    tasks = make[job.side.split()[0]](job)
    tasks["resident"] = resident_bytes
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        connection.send(tasks[what]() if what in tasks else None)


def resident_bytes() -> float:
    """Memory of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def random_prompts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(1000, 40_000, (count, length)).tolist()


def our_tasks(job: Job) -> dict[str, Callable[[], float]]:
    import torch

    from lmsmith.catalogue.reading import read_model
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import Engine, Request, SamplingSettings
    from lmsmith.generation.inference import InferenceDecoder
    from lmsmith.training.machine import resolve_machine

    imports = resident_bytes()
    machine = resolve_machine(MachineConfig(precision="bf16"))
    kind: Any = "int8" if job.side == "lmsmith int8" else "model"
    decoder = read_model(job.gguf, packed=job.side == OURS_PACKED).decoder
    model = InferenceDecoder(decoder, machine, weights=kind)
    del decoder  # its numbers, or the mapped file

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of those after it."""
        prompts, settings = random_prompts(count, length), SamplingSettings(tokens, temperature=0)
        started = job.clock()
        engine = Engine(model)
        for prompt in prompts:
            engine.submit(Request(prompt, settings))
        engine.step()
        first = job.clock()
        while engine.busy:
            engine.step()
        return first - started, job.clock() - first

    def bandwidth() -> float:
        """Bytes a second of reading 512 MB, the best of several."""
        numbers, best = torch.ones(128 << 20), float("inf")
        for _ in range(8):
            started = job.clock()
            numbers.sum()
            best = min(best, job.clock() - started)
        return numbers.numel() * 4 / best

    return {
        "one": lambda: write(1, PROMPT, job.tokens)[1],
        "batch16": lambda: write(BATCH, PROMPT, job.tokens)[1],
        "first": lambda: write(1, FIRST_PROMPT, 1)[0],
        "bytes": lambda: float(model.weight_bytes),
        "imports": lambda: imports,
        "bandwidth": bandwidth,
    }


def their_tasks(job: Job) -> dict[str, Callable[[], float]]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import lmsmith
    from lmsmith.models.interop.transformers import to_transformers

    imports = resident_bytes()
    ours = lmsmith.load(job.gguf).decoder
    settings, state = to_transformers(ours.config, ours.state_dict())
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.bfloat16)
    model.load_state_dict(state, strict=False)  # the unembedding is the tied embedding
    model.eval()

    model.generation_config.eos_token_id = None  # nothing ends a reply early

    class Clock:
        """A streamer that notes when tokens come; the prompt comes first."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, tokens: torch.Tensor) -> None:
            self.times.append(job.clock())

        def end(self) -> None:
            pass

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        prompts, clock = torch.tensor(random_prompts(count, length)), Clock()
        started = job.clock()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            streamer=clock,
        )
        assert len(clock.times) == tokens + 1
        return clock.times[1] - started, clock.times[-1] - clock.times[1]

    return {
        "one": lambda: write(1, PROMPT, job.tokens)[1],
        "batch16": lambda: write(BATCH, PROMPT, job.tokens)[1],
        "first": lambda: write(1, FIRST_PROMPT, 1)[0],
        "bytes": lambda: 2.0 * model.num_parameters(),
        "imports": lambda: imports,
    }


def llama_tasks(job: Job) -> dict[str, Callable[[], float]]:
    import xllamacpp

    imports = resident_bytes()
    parameters = xllamacpp.CommonParams()
    parameters.verbosity = -1
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = job.gguf, 1024, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job.threads
    server = xllamacpp.Server(parameters)

    def processor_seconds(length: int, tokens: int) -> float:
        started = time.process_time()
        wall_seconds(length, tokens)
        return time.process_time() - started

    def write(length: int, tokens: int) -> tuple[float, float]:
        if not job.processor_time:
            return wall_seconds(length, tokens)
        first = processor_seconds(length, 1)
        return first, processor_seconds(length, tokens) - first if tokens > 1 else 0.0

    def wall_seconds(length: int, tokens: int) -> tuple[float, float]:
        prompt = random_prompts(1, length)[0]
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = server.handle_completions(asked | {"cache_prompt": False, "ignore_eos": True})
        times = answer["timings"]
        assert (times["prompt_n"], times["predicted_n"]) == (length, tokens)
        return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3

    return {
        "one": lambda: write(PROMPT, job.tokens)[1],
        "first": lambda: write(FIRST_PROMPT, 1)[0],
        "bytes": lambda: float(Path(job.gguf).stat().st_size),
        "imports": lambda: imports,
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
    for column in ("one stream", "of floor", "batch 16", "first of 512", "memory", "of model"):
        table.add_column(column, justify="right", no_wrap=True)
    for side, found in result["sides"].items():
        batch, first = found.get("batch16_tokens_per_second"), found.get("first_token_seconds")
        table.add_row(
            side,
            f"{found['one_stream_tokens_per_second']:.1f}",
            f"{found['share_of_memory_floor']:.0%}",
            "" if batch is None else f"{batch:.0f}",
            "" if first is None else f"{first:.2f} s",
            f"{found['resident_bytes'] / 1e6:.0f} MB",
            f"{found['resident_bytes_beyond_imports'] / 1e6:.0f} MB",
        )
    table.add_section()
    for name, (task, peer, ours) in RATIOS.items():
        if name in result:
            cells = dict.fromkeys(("one", "floor", "batch16", "first"), "")
            cells[task] = f"{result[name]:.2f}×"
            table.add_row(f"{ours} to {peer}", *cells.values())
    Console().print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
