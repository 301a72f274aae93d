"""What one greedy client costs the others: for ``soak.py --greedy``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from served import Server, asked, serving

PROMPTS, SAMPLES = 256, 16
TOKENS = 2000
"""Tokens that the greedy client asks for in each reply; the context may end before."""

AT_ONCE = 3
"""Requests of the greedy client: more are in the queue when one is refused or over."""

MOST_WAIT, MOST_GROWTH = 2.0, 0.05
SETTLED = 10.0
"""Seconds after the last request until the memory is looked at."""

WORDS = "what do you like I rain and tea said the cat".split()  # noqa: SIM905


@dataclass
class Phase:
    """What the others saw in a part of the time."""

    first_tokens: list[float] = field(default_factory=list)  # seconds
    refused: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass
class _Run:
    server: Server
    tokens: list[str]
    seed: int
    phase: Phase = field(default_factory=Phase)
    over: bool = False
    greedy_done: int = 0
    greedy_refused: int = 0
    greedy_errors: list[str] = field(default_factory=list)

    async def client(self, number: int) -> None:
        """Somebody who reads one streamed reply after another."""
        source = random.Random(self.seed * 1000 + number)
        headers = {"Authorization": f"Bearer {self.tokens[number]}"}
        while not self.over:
            said = " ".join(source.choices(WORDS, k=source.randint(5, 60)))
            body = {
                "messages": [{"role": "user", "content": said}], "stream": True,
                "ignore_eos": True, "max_tokens": source.randint(10, 40),
            }  # fmt: skip
            phase, began, is_first = self.phase, time.perf_counter(), True
            with contextlib.suppress(ConnectionError):
                path = "/v1/chat/completions"
                async with asked(self.server.port, "POST", path, body, headers) as response:
                    if response.status != 200:
                        phase.refused += response.status == 429
                        if response.status != 429:
                            phase.errors.append(f"{response.status} {await response.body()!r}")
                        await asyncio.sleep(0.2)
                        continue
                    async for event in response.events():
                        text = event and event.get("choices") and event["choices"][0]["delta"]
                        if is_first and text and text.get("content"):
                            phase.first_tokens.append(time.perf_counter() - began)
                            is_first = False
            await asyncio.sleep(source.expovariate(2))

    async def greedy(self, number: int) -> None:
        """The greedy client: one request after another."""
        headers = {"Authorization": f"Bearer {self.tokens[-1]}"}
        prompts = [f"{' '.join(WORDS)} {number} {place}" for place in range(PROMPTS)]
        body = {"prompt": prompts, "n": SAMPLES, "max_tokens": TOKENS, "ignore_eos": True}
        while True:
            async with asked(self.server.port, "POST", "/v1/completions", body, headers) as found:
                self.greedy_refused += found.status == 429
                self.greedy_done += found.status == 200
                if found.status not in (200, 429, 504):  # --timeout may be over first
                    self.greedy_errors.append(f"{found.status} {await found.body()!r}")
            await asyncio.sleep(1)

    async def part(self, seconds: float) -> Phase:
        self.phase = Phase()
        await asyncio.sleep(seconds)
        return self.phase


def measured(
    path: str, database: str, seconds: float, clients: int, streams: int, seed: int
) -> dict[str, Any]:
    """The figures, with the limits that they are held to in `passed`."""
    from soak import let_in

    words = ["--database", database, "--streams", str(streams), "--memory", "0.2"]
    tokens = let_in(database, clients + 1)
    with serving(f"m={path}", *words) as server:
        found = asyncio.run(_measure(_Run(server, tokens, seed), clients, seconds))
    return {"seconds": seconds, "clients": clients, "streams": streams, **found}


async def _measure(run: _Run, clients: int, seconds: float) -> dict[str, Any]:
    others = [asyncio.create_task(run.client(number)) for number in range(clients)]
    await run.part(min(10.0, seconds / 8))  # the first replies warm the server up
    without = await run.part(seconds / 4)
    before = await _memory(run.server)
    greedy = [asyncio.create_task(run.greedy(number)) for number in range(AT_ONCE)]
    beside = await run.part(seconds / 2)
    most = await _memory(run.server)
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
    after = await run.part(seconds / 4)
    run.over = True
    await asyncio.gather(*others)
    gc.collect()
    await asyncio.sleep(SETTLED)
    returned = await _memory(run.server)
    waits = {
        name: _wait(phase)
        for name, phase in (("without", without), ("beside", beside), ("after", after))
    }
    ratio = waits["beside"] / waits["without"]
    growth = returned / before - 1
    errors = [*without.errors, *beside.errors, *after.errors, *run.greedy_errors]
    refused = without.refused + beside.refused + after.refused
    return {
        "first_token_seconds_without_greedy": round(waits["without"], 4),
        "first_token_seconds_with_greedy": round(waits["beside"], 4),
        "first_token_seconds_after_greedy": round(waits["after"], 4),
        "first_token_ratio": round(ratio, 3),
        "first_tokens": [len(without.first_tokens), len(beside.first_tokens)],
        "others_refused_429": refused,
        "greedy_refused_429": run.greedy_refused,
        "greedy_answered": run.greedy_done,
        "errors": errors[:10],
        "memory_before_mb": round(before / 1e6, 1),
        "memory_with_greedy_mb": round(most / 1e6, 1),
        "memory_after_mb": round(returned / 1e6, 1),
        "memory_growth": round(growth, 4),
        "passed": ratio <= MOST_WAIT and not refused and not errors and growth <= MOST_GROWTH,
    }


def _wait(phase: Phase) -> float:
    """Median seconds to a first token; infinite if there was none."""
    return statistics.median(phase.first_tokens) if phase.first_tokens else float("inf")


async def _memory(server: Server) -> float:
    """Bytes of the server, the median of a few looks."""
    looks = []
    for _ in range(5):
        looks.append(server.memory())
        await asyncio.sleep(0.2)
    return statistics.median(looks)


def show_greedy(found: dict[str, Any]) -> None:
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
