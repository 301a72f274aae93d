"""What running streams notice of a switch to a newly promoted version.

A server of its own serves version 1 of a model. Streams are read over HTTP without a switch, then
with one in their midst, again and again in one run. ``added_gap_tokens`` is the longest gap between
two tokens of a stream during a switch, less the longest one without, in median tokens: the bar is
one token. Replies' tokens are counted as they come; the server sends those of 25 ms together, so
that one gap of tokens is at least that.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from served import Server, asked, serving, tiny_model

Count = Annotated[int, tyro.conf.arg(metavar="N")]

BAR_TOKENS = 1.0
NAME = "ours"


@dataclass(frozen=True)
class Turn:
    """One turn of all streams: the longest gap between deliveries, the usual one, in seconds, and
    how long the switch took; 0 where there was none."""

    longest: float
    usual: float
    load: float


def main(
    model: str = "",
    streams: Count = 4,
    tokens: Count = 300,
    rounds: Count = 5,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """The longest gap between tokens of running streams, with a switch and without one.

    Example: python benchmarks/switch.py --json

    Args:
        model: A name or a path, as of `lmsmith serve`; a tiny model of random weights if empty.
        streams: How many are read at the same time.
        tokens: Of every reply.
        rounds: Turns without and with a switch; the median of each counts.
        threads: Of the server; all cores if 0.
        json: Print one JSON object instead of the table.
    """
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, home(Path(folder)):
        make_versions(model or str(tiny_model(Path(folder))))
        database = ("--database", str(Path(folder) / "switch.db"))
        with serving(NAME, "--threads", f"{threads}", *database) as server:
            asyncio.run(turn(server, streams, tokens, 0))  # warm
            still, switched = list[Turn](), list[Turn]()
            for number in range(rounds):
                still.append(asyncio.run(turn(server, streams, tokens, 0)))
                switched.append(asyncio.run(turn(server, streams, tokens, 2 - number % 2)))
    usual = statistics.median(each.usual for each in still)
    longest = {
        "without": statistics.median(each.longest for each in still),
        "with": statistics.median(each.longest for each in switched),
    }
    added = (longest["with"] - longest["without"]) / usual
    result = {
        "model": model or "tiny",
        "streams": streams,
        "threads": threads,
        "rounds": rounds,
        "token_seconds": usual,
        "longest_gap_without_seconds": longest["without"],
        "longest_gap_with_seconds": longest["with"],
        "added_gap_tokens": added,
        "load_seconds": statistics.median(each.load for each in switched),
        "bar": {"added_gap_tokens": BAR_TOKENS, "passed": added <= BAR_TOKENS},
    }
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


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
    table = Table(title=f"{result['streams']} streams of {result['model']}")
    for name in ("", "longest gap", "in tokens"):
        table.add_column(name, justify="left" if not name else "right")
    usual = result["token_seconds"]
    for name in ("without", "with"):
        seconds = result[f"longest_gap_{name}_seconds"]
        table.add_row(f"{name} a switch", f"{1000 * seconds:.1f} ms", f"{seconds / usual:.2f}")
    console = Console()
    console.print(table)
    passed = "passed" if result["bar"]["passed"] else "missed"
    console.print(
        f"a switch adds {result['added_gap_tokens']:.2f} tokens (bar {BAR_TOKENS:g}: {passed}); "
        f"the new version was read in {result['load_seconds']:.2f} s"
    )


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
