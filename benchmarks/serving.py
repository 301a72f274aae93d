"""How fast `lmsmith serve` writes for many at once: tokens a second, and the wait for the first.

The server is a process of its own, asked over loopback by this one; the bare `Engine` answers the
same prompts in a third process. They take turns, so that whatever else the machine does meets both.
Every stream asks by /v1/completions for the continuation of random tokens, greedy, with a set
number of tokens, all at the same time. The time is that of the whole: prompts are read in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as json_module
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

Count = Annotated[int, tyro.conf.arg(metavar="N")]

FIRST_TOKEN, LAST_TOKEN = 100, 20_000
"""Prompts are made of tokens between these."""


@dataclass(frozen=True)
class Measured:
    """One turn: tokens a second, and each stream's seconds to its first token."""

    rate: float
    first: tuple[float, ...]


def main(
    model: str = "smollm2-135m",
    streams: tuple[int, ...] = (1, 4, 16),
    tokens: Count = 64,
    prompt: Count = 32,
    rounds: Count = 3,
    weights: str = "model",
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Tokens a second and time to the first token, beside the bare engine.

    Example: python benchmarks/serving.py --json

    Args:
        model: A name or a path, as of `lmsmith serve`.
        streams: How many ask at the same time.
        tokens: Of every reply.
        prompt: Tokens of every prompt.
        rounds: How often each side has its turn; its fastest counts, and all waits.
        weights: model or int8, of both sides.
        threads: Of both sides; all cores if 0.
        json: Print one JSON object instead of the table.
    """
    status = Console(stderr=True)
    served: dict[int, list[Measured]] = {count: [] for count in streams}
    bare: dict[int, list[float]] = {count: [] for count in streams}
    with Bare(model, weights, threads) as engine, server(model, weights, threads) as port:
        for number in range(rounds + 1):  # the first one warms up
            for count in streams:
                prompts = random_prompts(count, prompt, seed=number * 1000 + count)
                alone = engine.rate(prompts, tokens)
                together = asyncio.run(ask_all(port, prompts, tokens))
                status.print(
                    f"{count} streams: bare {alone:.1f}, served {together.rate:.1f} tokens/s"
                    f"{'' if number else ' (warming up)'}"
                )
                if number:
                    bare[count].append(alone)
                    served[count].append(together)
        turns = asyncio.run(two_turns(port))
    result = {
        "model": model,
        "weights": weights,
        "threads": threads or os.cpu_count(),
        "tokens": tokens,
        "prompt": prompt,
        "streams": [figures(count, served[count], bare[count]) for count in streams],
        "turns": turns,
    }
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


def figures(count: int, served: list[Measured], bare: list[float]) -> dict[str, float]:
    waits = sorted(wait for each in served for wait in each.first)
    rate, alone = max(each.rate for each in served), max(bare)
    return {
        "streams": count,
        "tokens_per_second": rate,
        "first_token_p50": statistics.median(waits),
        "first_token_p95": waits[min(len(waits) - 1, int(0.95 * len(waits)))],
        "bare_tokens_per_second": alone,
        "share": rate / alone,
    }


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [
        [source.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)] for _ in range(count)
    ]


@contextlib.contextmanager
def server(model: str, weights: str, threads: int) -> Iterator[int]:
    """The port of a server that is ready."""
    words = ["serve", f"m={model}", "--port", "0", "--weights", weights, "--threads", f"{threads}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmsmith", *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "is ready" in line), None)
        if line is None:
            sys.exit("the server did not start")
        yield int(line.split("/v1")[0].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(60)


async def ask_all(port: int, prompts: list[list[int]], tokens: int) -> Measured:
    started = time.perf_counter()
    results = await asyncio.gather(*(ask(port, prompt, tokens) for prompt in prompts))
    seconds = time.perf_counter() - started
    return Measured(sum(n for n, _ in results) / seconds, tuple(first for _, first in results))


async def ask(port: int, prompt: list[int], tokens: int) -> tuple[int, float]:
    """Tokens written, by the server's count, and seconds to the first event."""
    body = {
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return await _post(port, "/v1/completions", body)


async def _post(port: int, path: str, body: dict[str, Any]) -> tuple[int, float]:
    content = json_module.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    first, last = 0.0, b""
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        if not line:
            sys.exit("the server hung up")
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - started
            last = line
    writer.close()
    await writer.wait_closed()
    return json_module.loads(last[6:])["usage"]["completion_tokens"], first


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
        return (await _post(port, "/v1/chat/completions", body))[1]

    first = await turn()
    messages += [
        {"role": "assistant", "content": "It is the one you said first."},
        {"role": "user", "content": "And the second?"},
    ]
    return {"first": first, "second": await turn()}


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
    for column in ("streams", "tokens/s", "first p50", "first p95", "bare tokens/s", "share"):
        table.add_column(column, justify="right")
    for row in result["streams"]:
        table.add_row(
            str(row["streams"]),
            f"{row['tokens_per_second']:.1f}",
            f"{row['first_token_p50'] * 1000:.0f} ms",
            f"{row['first_token_p95'] * 1000:.0f} ms",
            f"{row['bare_tokens_per_second']:.1f}",
            f"{100 * row['share']:.0f} %",
        )
    Console().print(table)
    turns = result["turns"]
    print(
        f"first token of a long first turn: {turns['first'] * 1000:.0f} ms, "
        f"of the second: {turns['second'] * 1000:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
