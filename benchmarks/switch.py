"""How long running streams wait during a switch to a newly promoted version.

A server of its own serves version 1 of a model. In each round, streams are read over HTTP twice to
their ends: once undisturbed, once with a switch in their midst, which is a promotion over HTTP, the
check of the files, their reading, and the change. A switch takes processors for a moment, so that
tokens come more slowly; no stream may stop for it.

``longest_gap_seconds`` is the longest time between two deliveries in any of the streams, from a
third of the way on. ``added_gap_tokens`` of a round is the longest gap with a switch less the one
without, in the median time of a token at rest; the bar is one token for the median round, and the
worst round is printed beside it. ``added_time_tokens`` is how much later the streams end, in the
same unit: the whole price of a switch. The server sends tokens that follow each other faster than
every 25 ms together, so that no gap is shorter than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json as json_module
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from served import Server, asked, serving

Count = Annotated[int, tyro.conf.arg(metavar="N")]

BAR_TOKENS = 1.0
NAME = "ours"


@dataclass(frozen=True)
class Turn:
    """All streams, read once.

    Attributes:
        longest: gap between two deliveries of a stream, seconds.
        token: median over the streams of the mean time of a token, seconds.
        load: how long the switch took, seconds; 0 without one.
    """

    longest: float
    token: float
    load: float


@dataclass(frozen=True)
class Round:
    """A turn without a switch, and one with it."""

    still: Turn
    switched: Turn


def main(
    model: str = "",
    streams: Count = 4,
    tokens: Count = 240,
    rounds: Count = 9,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """The longest gap between tokens of running streams, with a switch and without one.

    Example: python benchmarks/switch.py --json

    Args:
        model: A name or a path, as of `lmsmith serve`; random weights of the quickstart's shape
            if empty.
        streams: How many are read at the same time.
        tokens: Of every reply; with the prompt's four they fit the model's context.
        rounds: Pairs of turns, without a switch and with one.
        threads: Of the server; all cores if 0.
        json: Print one JSON object instead of the table.
    """
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, home(Path(folder)):
        make_versions(model or str(random_model(Path(folder))))
        database = ("--database", str(Path(folder) / "switch.db"))
        with serving(NAME, "--threads", f"{threads}", *database) as server:
            asyncio.run(turn(server, streams, tokens, 0))  # warm
            found = [
                Round(
                    asyncio.run(turn(server, streams, tokens, 0)),
                    asyncio.run(turn(server, streams, tokens, 2 - number % 2)),
                )
                for number in range(rounds)
            ]
    result = {
        "model": model or "random weights, 4 layers of width 256",
        "streams": streams,
        "tokens": tokens,
        "threads": threads,
        **summary(found, tokens),
    }
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


def summary(rounds: Sequence[Round], tokens: int) -> dict[str, Any]:
    """Medians over the rounds, and the worst of what a switch adds."""
    token = statistics.median(each.still.token for each in rounds)
    gaps = [(each.switched.longest - each.still.longest) / token for each in rounds]
    late = [(each.switched.token - each.still.token) * tokens / token for each in rounds]
    return {
        "rounds": len(rounds),
        "token_seconds": token,
        "longest_gap_seconds": {
            "without": statistics.median(each.still.longest for each in rounds),
            "with": statistics.median(each.switched.longest for each in rounds),
        },
        "added_gap_tokens": statistics.median(gaps),
        "added_gap_tokens_worst": max(gaps),
        "added_gap_tokens_by_round": gaps,
        "added_time_tokens": statistics.median(late),
        "added_time_tokens_worst": max(late),
        "load_seconds": statistics.median(each.switched.load for each in rounds),
        "bar": {"added_gap_tokens": BAR_TOKENS, "passed": statistics.median(gaps) <= BAR_TOKENS},
    }


@contextlib.contextmanager
def home(folder: Path) -> Any:
    """Versions of this run alone."""
    before = os.environ.get("LMSMITH_HOME")
    os.environ["LMSMITH_HOME"] = str(folder / "home")
    try:
        yield
    finally:
        os.environ.pop("LMSMITH_HOME")
        if before is not None:
            os.environ["LMSMITH_HOME"] = before


def random_model(folder: Path) -> Path:
    """A model of the quickstart's shape with 4,096 ids; its tokenizer has fewer."""
    import torch

    from lmsmith.models.config import ModelConfig
    from lmsmith.models.decoder import Decoder
    from lmsmith.models.folder import save_model
    from lmsmith.tokenizers import Tokenizer

    texts = [f"{number} cats like {number * 7919} cups of tea" for number in range(3000)]
    tokenizer = Tokenizer.train(texts, 4096)
    decoder = Decoder(ModelConfig(4, 256, 4, 256, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "random", decoder, tokenizer, {})
    return folder / "random"


def make_versions(word: str) -> None:
    """Two versions of the same weights, so that replies are equally long."""
    from lmsmith.catalogue import versions
    from lmsmith.catalogue.reading import read_model
    from lmsmith.catalogue.registry import now
    from lmsmith.catalogue.versions import Version
    from lmsmith.models.folder import save_model

    read = read_model(word)
    for number in (1, 2):
        folder = versions.folder_of(NAME) / versions.NEXT
        if number == 1:
            save_model(folder / "model", read.decoder, read.tokenizer, read.card)
        else:
            shutil.copytree(versions.version(NAME, 1).path, folder / "model")
        sha256 = versions.hash_model(folder / "model")
        made = Version(NAME, number, "model", sha256, word, now())
        versions.write_version(folder, made)
        versions.put_in_place(made)
        if number == 1:
            versions.found_lineage(made, "benchmark")


async def turn(server: Server, streams: int, tokens: int, promoted: int) -> Turn:
    """Read streams; a third of the way, promote a version if it is not 0."""
    moments: list[list[float]] = [[] for _ in range(streams)]
    tasks = [
        asyncio.create_task(read(server.port, tokens, each, seed))
        for seed, each in enumerate(moments)
    ]
    while min(map(len, moments)) < tokens // 3:
        for task in tasks:
            if task.done():
                task.result()  # its error
        await asyncio.sleep(0.005)
    load = 0.0
    if promoted:
        started = time.perf_counter()
        path = f"/api/versions/{NAME}/promote"
        async with asked(server.port, "POST", path, {"version": f"{NAME}@{promoted}"}) as response:
            found = await response.json()
        load = time.perf_counter() - started
        assert found["served"] == f"{NAME}@{promoted}", found
        if all(task.done() for task in tasks):
            raise SystemExit("the streams ended before the switch: give more --tokens")
    await asyncio.gather(*tasks)
    gaps = [
        later - before
        for each in moments
        for before, later in itertools.pairwise(each[tokens // 3 :])
    ]
    whole = [(each[-1] - each[0]) / (len(each) - 1) for each in moments]
    return Turn(max(gaps), statistics.median(whole), load)


async def read(port: int, tokens: int, moments: list[float], seed: int) -> None:
    """Note the time of every token of one stream."""
    body = {
        "model": NAME,
        "prompt": [100 + seed, 101, 102, 103],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "seed": seed,
        "logprobs": 0,
    }
    async with asked(port, "POST", "/v1/completions", body) as response:
        if response.status != 200:
            raise SystemExit(f"the server refuses: {await response.json()}")
        async for event in response.events():
            if event is not None:
                moments += [time.perf_counter()] * len(event["choices"][0]["logprobs"]["tokens"])


def print_table(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['streams']} streams, {result['rounds']} rounds; {result['model']}"
    )
    for name in ("longest gap", "median", "in tokens", "worst round"):
        table.add_column(name, justify="left" if name == "longest gap" else "right")
    usual = result["token_seconds"]
    for name, seconds in result["longest_gap_seconds"].items():
        table.add_row(f"{name} a switch", f"{1000 * seconds:.1f} ms", f"{seconds / usual:.2f}", "")
    for name, key in (
        ("a switch adds to it", "added_gap_tokens"),
        ("a switch adds to a reply", "added_time_tokens"),
    ):
        added, worst = result[key], result[f"{key}_worst"]
        table.add_row(name, f"{1000 * usual * added:.1f} ms", f"{added:.2f}", f"{worst:.2f}")
    console = Console()
    console.print(table)
    passed = "passed" if result["bar"]["passed"] else "missed"
    console.print(
        f"a token takes {1000 * usual:.1f} ms, a switch {result['load_seconds']:.2f} s; "
        f"bar {BAR_TOKENS:g} token in the median round: {passed}"
    )


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
