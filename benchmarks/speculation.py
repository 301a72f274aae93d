"""What speculative decoding gains: the same greedy replies with and without a draft, in turn."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

PASSAGE = """The lighthouse at Cape Henry was the first one that the new government paid for. It was
finished in 1792 and burned whale oil in eight lamps. Its keeper climbed 191 steps every evening."""
QUESTIONS = {
    "copies": f"Repeat the following text word for word, three times.\n\n{PASSAGE}",
    "open": "Write a story about a lighthouse and a storm.",
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
