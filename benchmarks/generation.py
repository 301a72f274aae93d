"""How fast SmolLM2-135M writes: lmsmith against transformers, and llama.cpp where it is installed.

Each side lives in a process of its own with the same threads and the same instructions
(``--instructions``, held.py), and they take turns, so that whatever else the machine does meets all
of them. What each side gets:

- lmsmith: `Engine`, as `lmsmith chat` uses it, greedy, with the file's own 4 bits, with bf16
  weights and with int8 ones.
- transformers: its Llama with the same weights in bf16 and in fp32, `generate(do_sample=False)`
  with its own cache. The faster one counts.
- llama.cpp, by `xllamacpp` (its server) or `llama-cpp-python` (its own functions), whichever is
  installed and built for the instructions: with the file's own 4 bits and with 8 bits (Q8_0,
  written by `lmsmith export`); one stream alone.
- vLLM, by ``--vllm PYTHON`` of an environment with its build for processors: its server, asked over
  loopback, with the same weights in bf16.

All write random prompts of the same lengths, and none stops before its time. A reply's first token
reads the prompt: it is timed by itself, from the call to the token, and the others from there on.
Every turn has other prompts, so that nothing is read from a cache of prefixes.

The floor is the longer one of two times: to read all weights once a token, at the memory speed
measured beside it; and to compute all products, at the most operations a second that this set of
instructions reaches here (peak.cpp).

Memory is what the side's process holds after its turns, and what it holds beyond its imports. The
memory of `lmsmith serve` is what it holds after a reply with the 4-bit file, and beyond what it
holds with a tiny model; so for a file of 1.1 thousand million random weights too (larger_file.py).

With ``--draft`` speculative decoding is measured instead: the same greedy replies with and without
the draft, in turn, one stream, for a question whose reply copies from it and for an open one.
"""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from held import Instructions, describe, has_llama_cpp, hold, hold_llama_cpp, peak_operations
from larger_file import larger_gguf
from rich.console import Console
from rich.table import Table
from served import serving, tiny_model, vllm_package
from sides import (
    BATCH,
    MOST,
    OURS,
    OURS_INT8,
    OURS_PACKED,
    PEER_EIGHT,
    PEER_PACKED,
    TASKS,
    THEIRS,
    THEIRS_FP32,
    VLLM,
    Job,
    Worker,
)

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Aims = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A row of the table.

    Attributes:
        what: in words.
        task: of `TASKS`.
        ours: our side.
        peers: the fastest one counts.
        aims: set of instructions → how many times as fast as the peer we want to be.
    """

    what: str
    task: str
    ours: str
    peers: tuple[str, ...]
    aims: Aims


TRANSFORMERS, LLAMA_CPP = (THEIRS, THEIRS_FP32), (PEER_PACKED,)
AIMS_ONE: Aims = {"avx512": 1.3, "avx2": 1.2}
AIMS_BATCH: Aims = {"avx512": 4.0, "avx2": 3.0}
AIMS_FIRST: Aims = {"avx512": 3.0, "avx2": 1.5}
AIMS_AHEAD: Aims = {"avx512": 1.0, "avx2": 1.0}
MEMORY_AIM = 2.5
COMPARISONS = (
    Comparison("one stream", "one", OURS_PACKED, LLAMA_CPP, AIMS_ONE),
    Comparison("16 at once", "batch16", OURS_PACKED, TRANSFORMERS, AIMS_BATCH),
    Comparison("16 at once", "batch16", OURS, TRANSFORMERS, AIMS_BATCH),
    Comparison("first token of 512", "first", OURS_PACKED, LLAMA_CPP, AIMS_FIRST),
    Comparison("first token of 512", "first", OURS, TRANSFORMERS, {}),
    Comparison("one stream", "one", OURS, TRANSFORMERS, {}),
    Comparison("one stream", "one", OURS_INT8, (PEER_EIGHT,), {}),
    Comparison("first token of 2,048", "long", OURS_PACKED, LLAMA_CPP, {}),
    Comparison("first token of 2,048", "long", OURS, TRANSFORMERS, {}),
    Comparison("one stream", "one", OURS, (VLLM,), AIMS_AHEAD),
    Comparison("16 at once", "batch16", OURS, (VLLM,), AIMS_AHEAD),
    Comparison("64 at once", "batch64", OURS, (VLLM,), AIMS_AHEAD),
    Comparison("first token of 512", "first", OURS, (VLLM,), AIMS_AHEAD),
    Comparison("first token of 2,048", "long", OURS, (VLLM,), AIMS_AHEAD),
)
FACTS = ("bytes", "imports", "resident", "steps", *(f"operations of {task}" for task in TASKS))
COLD = """
import sys, lmsmith
model = lmsmith.load(sys.argv[1])
next(iter(model.stream_chat([{"role": "user", "content": "Hello!"}], temperature=0)))
"""


@dataclass(frozen=True)
class Row:
    """What was found.

    Attributes:
        ratio: our speed by the peer's, of the fastest turns; or memory by the file's size.
        ratio_of_medians: of all turns; as ratio where there is one value alone.
        aim: what is wanted: at least that, or at most that of memory; None where nothing is.
        share_of_floor: the least time possible here by ours; None where it is not known.
    """

    what: str
    ours: str
    peer: str
    ratio: float
    ratio_of_medians: float
    aim: float | None = None
    met: bool | None = None
    share_of_floor: float | None = None


def main(
    gguf: Path | None = None,
    tokens: Count = 48,
    rounds: Count = 4,
    threads: Count = 0,
    instructions: Instructions = "native",
    draft: str = "",
    only: str = "",
    vllm: Path | None = None,
    processor_time: bool = False,
    json: bool = False,
) -> int:
    """Tokens a second of SmolLM2-135M, alone and in a batch, against named peers.

    Example: python benchmarks/generation.py --instructions avx2 --json

    Args:
        gguf: SmolLM2's GGUF file; that of `lmsmith pull smollm2-135m` if it is left out.
        tokens: Tokens of every reply.
        rounds: How often each side has its turn; its fastest counts.
        threads: Of every side; all cores if 0.
        instructions: What every side may use: avx2, avx512, or what the processor has.
        draft: Measure speculative decoding with this draft alone: prompt-lookup, or a model.
        only: These sides alone, separated by commas, one of lmsmith among them.
        vllm: Ask vLLM's server too, of this Python.
        processor_time: Count the seconds of the processors, with --threads 1 on a busy machine.
        json: Print one JSON object instead of the table.
    """
    held = hold(instructions)
    path = gguf or find_gguf()
    threads = threads or os.cpu_count() or 1
    if draft:
        from speculation import print_speculation, speculation

        gain = speculation(path, draft, tokens, rounds, threads)
        print(json_module.dumps(gain, indent=2)) if json else print_speculation(gain, threads)
        return 0
    wanted = (only.split(",") if only else all_sides()) + [VLLM] * (vllm is not None)
    llama_cpp = ("", "")
    if {PEER_PACKED, PEER_EIGHT} & set(wanted):
        llama_cpp = hold_llama_cpp(held)
    with tempfile.TemporaryDirectory() as folder:
        files = dict.fromkeys(wanted, path)
        if PEER_EIGHT in files:
            files[PEER_EIGHT] = eight_bits(path, folder)
        jobs = [
            Job(side, str(files[side]), threads, tokens, processor_time, llama_cpp[0], f"{vllm}")
            for side in wanted
        ]
        starts: list[float] = []
        seconds = measure(jobs, rounds, lambda: starts.append(cold_start(path)))
        memory, sizes = {}, {"file": path.stat().st_size}
        if OURS_PACKED in wanted:
            larger = larger_gguf(path, Path(folder))
            sizes["larger file"] = larger.stat().st_size
            models = {"file": path, "larger file": larger, "tiny model": tiny_model(Path(folder))}
            memory = {name: after_a_reply(model, threads) for name, model in models.items()}
    peak = peak_operations(held, threads, jobs[0].clock)
    result = figures(seconds, tokens, peak)
    rows = compare(seconds, peak, held) + memory_rows(memory, sizes)
    result |= {
        "rows": [asdict(row) for row in rows],
        "cold_start_seconds": min(starts),
        "serving_memory_bytes": memory,
        "file_bytes": sizes,
        "machine": describe(held, threads, wanted, llama_cpp),
    }
    if vllm:
        result["machine"]["versions"]["vllm"] = vllm_package(vllm)
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_sides(result)
        print_rows(rows, result)
    return 0


def all_sides() -> list[str]:
    """Ours and those of the peers that are installed."""
    ours = [OURS_PACKED, OURS, OURS_INT8]
    theirs = [*TRANSFORMERS] if importlib.util.find_spec("transformers") else []
    return ours + theirs + [PEER_PACKED, PEER_EIGHT] * has_llama_cpp()


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
            for what in FACTS:
                if (found := worker.ask(what)) is not None:
                    seconds[side][what] = [found]
        ours = next(side for side in workers if side.startswith("lmsmith"))
        seconds[ours]["bandwidth"] = [workers[ours].ask("bandwidth") or 0.0]
    finally:
        for worker in workers.values():
            worker.stop()
    return seconds


def figures(
    seconds: dict[str, dict[str, list[float]]], tokens: int, peak: dict[str, float]
) -> dict[str, Any]:
    """Tokens a second, seconds and memory of each side, of its fastest turns."""
    best = fastest(seconds)
    bandwidth = speed_of_memory(best)
    sides: dict[str, dict[str, float]] = {}
    for side, found in best.items():
        sides[side] = {"one_stream_tokens_per_second": (tokens - 1) / found["one"]}
        for task, count in (("batch16", BATCH), ("batch64", MOST)):
            if task in found:
                sides[side][f"{task}_tokens_per_second"] = count * (tokens - 1) / found[task]
        sides[side]["first_token_seconds"] = found["first"]
        sides[side]["first_token_of_long_seconds"] = found["long"]
        one = sides[side]["one_stream_tokens_per_second"]
        sides[side]["share_of_memory_floor"] = one * found["bytes"] / bandwidth
        if "resident" in found:
            sides[side]["resident_bytes"] = found["resident"]
            sides[side]["resident_bytes_beyond_imports"] = found["resident"] - found["imports"]
    return {
        "memory_gigabytes_per_second": bandwidth / 1e9,
        "peak_gigaoperations_per_second": {kind: rate / 1e9 for kind, rate in peak.items()},
        "sides": sides,
        "seconds": seconds,
    }


def fastest(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        side: {task: min(all_) for task, all_ in found.items()} for side, found in seconds.items()
    }


def speed_of_memory(best: dict[str, dict[str, float]]) -> float:
    """Bytes a second."""
    return next(found["bandwidth"] for found in best.values() if "bandwidth" in found)


def compare(
    seconds: dict[str, dict[str, list[float]]], peak: dict[str, float], held: str
) -> list[Row]:
    """The rows whose sides are here."""
    best, rows = fastest(seconds), []
    for each in COMPARISONS:
        peers = [peer for peer in each.peers if peer in seconds]
        if each.ours not in seconds or not peers:
            continue
        peer = min(peers, key=lambda peer: best[peer][each.task])
        ours, theirs = seconds[each.ours][each.task], seconds[peer][each.task]
        ratio, aim = min(theirs) / min(ours), each.aims.get(held)
        rows.append(
            Row(
                each.what,
                each.ours,
                peer,
                ratio,
                statistics.median(theirs) / statistics.median(ours),
                aim,
                None if aim is None else ratio >= aim,
                floor(best[each.ours], each, peak, speed_of_memory(best)) / min(ours),
            )
        )
    return rows


def floor(
    found: dict[str, float], row: Comparison, peak: dict[str, float], bandwidth: float
) -> float:
    """Least seconds of a task of ours: all bytes read, or all products computed."""
    steps = 1 if row.task in ("first", "long") else found["steps"]
    reading = steps * found["bytes"] / bandwidth
    kind = "floats" if row.ours == OURS else "integers"
    return max(reading, found[f"operations of {row.task}"] / peak[kind] if peak else 0.0)


def after_a_reply(model: Path, threads: int) -> int:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 48}
    with serving(f"m={model}", "--threads", f"{threads}") as server:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/chat/completions",
            json_module.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            response.read()
        return server.resident()


def memory_rows(memory: dict[str, int], sizes: dict[str, int]) -> list[Row]:
    """What serving holds as a multiple of the size of each file: all, and beyond a tiny model."""
    rows = []
    for name, size in sizes.items() if memory else ():
        peer, beyond = f"the {name} ({size / 1e6:.0f} MB)", memory[name] - memory["tiny model"]
        for what, held in (("all", memory[name]), ("beyond a tiny model", beyond)):
            ratio = held / size
            row = Row(f"memory of serve, {what}", OURS_PACKED, peer, ratio, ratio)
            rows.append(replace(row, aim=MEMORY_AIM, met=ratio <= MEMORY_AIM))
    return rows


def cold_start(gguf: Path) -> float:
    """Seconds of a fresh process from its start to the end of the first token's text."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", COLD, str(gguf)], check=True)
    return time.perf_counter() - started


def print_sides(result: dict[str, Any]) -> None:
    table = Table(
        title=f"SmolLM2-135M, {result['machine']['threads']} threads: tokens a second of 1, "
        f"{BATCH} and {MOST} replies, seconds to the first token of 512 and of 2,048",
        caption=f"floor: weights read at {result['memory_gigabytes_per_second']:.1f} GB/s; "
        f"cold start to first token {result['cold_start_seconds']:.1f} s",
    )
    table.add_column("side")
    columns = ("1", "of floor", f"{BATCH}", f"{MOST}", "512", "2,048")
    for column in (*columns, "memory", "of model"):
        table.add_column(column, justify="right", no_wrap=True)
    for side, found in result["sides"].items():
        batches = (found.get(f"batch{n}_tokens_per_second") for n in (BATCH, MOST))
        memory = (found.get(name) for name in ("resident_bytes", "resident_bytes_beyond_imports"))
        table.add_row(
            side,
            f"{found['one_stream_tokens_per_second']:.1f}",
            f"{found['share_of_memory_floor']:.0%}",
            *("" if rate is None else f"{rate:.0f}" for rate in batches),
            f"{found['first_token_seconds']:.2f} s",
            f"{found['first_token_of_long_seconds']:.2f} s",
            *("" if size is None else f"{size / 1e6:.0f} MB" for size in memory),
        )
    Console().print(table)


def print_rows(rows: list[Row], result: dict[str, Any]) -> None:
    machine, peak = result["machine"], result["peak_gigaoperations_per_second"]
    table = Table(
        title=f"{machine['cpu']}, {machine['instructions']}, {machine['date']}",
        caption="floor: " + "; ".join(
            [f"{result['memory_gigabytes_per_second']:.1f} GB/s",
             *(f"{rate:.0f} thousand million operations/s with {kind}"
               for kind, rate in peak.items())]
        ),
    )  # fmt: skip
    for column in ("what", "lmsmith", "against"):
        table.add_column(column)
    for column in ("ratio", "aim", "met", "of floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        sign = "≤" if row.what.startswith("memory") else "≥"
        table.add_row(
            row.what,
            row.ours.removeprefix("lmsmith "),
            row.peer,
            f"{row.ratio:.2f}×",
            "" if row.aim is None else f"{sign} {row.aim}×",
            "" if row.met is None else ("yes" if row.met else "no"),
            "" if row.share_of_floor is None else f"{row.share_of_floor:.0%}",
        )
    Console().print(table)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"kernels {machine['kernels']}; PyTorch {machine['pytorch_instructions']}; {versions}")
    if machine["llama_cpp"]:
        print(f"llama.cpp {machine['llama_cpp']}")


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
