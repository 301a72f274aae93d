"""Banded attention against dense: seconds by length, forward and with the backward pass.

Both are given the same queries, keys and values in one run and take turns, so that whatever else
the machine does meets both. Dense is PyTorch's fused kernel, `scaled_dot_product_attention` with
`is_causal`; banded is `banded_attention` of `lmsmith.models.attention_kernels`, its biases made
anew every time. The exponent p of seconds ∝ lengthᵖ is that of the line of least squares through
the logarithms: 1 for work that grows with the length, 2 for its square.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from lmsmith.models.attention_kernels import band_biases, banded_attention

Count = Annotated[int, tyro.conf.arg(metavar="N")]
PASSES = ("forward", "forward+backward")


def main(
    window: Count = 256,
    heads: Count = 12,
    head_width: Count = 64,
    repeats: Count = 3,
    threads: Count = 0,
    bf16: bool = False,
    json: bool = False,
) -> int:
    """Seconds of banded and dense attention for one sequence of 1,024 to 8,192 tokens.

    Example: python benchmarks/banded_attention.py --json

    Args:
        window: Tokens a position of the banded layer sees, itself included.
        heads: Attention heads; 12 of 64 are GPT-3 125M's.
        head_width: Width of each.
        repeats: Times each is measured, after one to warm up; the fastest counts.
        threads: Threads; PyTorch's choice if 0.
        bf16: Measure in bfloat16 instead of float32.
        json: Print one JSON object instead of the table.
    """
    if threads:
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if bf16 else torch.float32
    lengths = [1024, 2048, 4096, 8192]
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"dense": [], "banded": []} for name in PASSES
    }
    for length in lengths:
        parts, direction = sequence(heads, length, head_width, dtype)
        for name in PASSES:
            fastest = measure(parts, direction, window, repeats, backward=name != "forward")
            for kind, found in fastest.items():
                seconds[name][kind].append(found)
    result: dict[str, Any] = {
        "window": window,
        "heads": heads,
        "head_width": head_width,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "lengths": lengths,
        "seconds": seconds,
        "growth_exponent": {
            name: {kind: exponent(lengths, found) for kind, found in kinds.items()}
            for name, kinds in seconds.items()
        },
        "speedup_at_8192": seconds["forward"]["dense"][-1] / seconds["forward"]["banded"][-1],
        "speedup_at_8192_with_backward": (
            seconds["forward+backward"]["dense"][-1] / seconds["forward+backward"]["banded"][-1]
        ),
    }
    print(json_module.dumps(result, indent=2)) if json else print_table(result)
    return 0


def sequence(
    heads: int, length: int, head_width: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Random query, key and value (1, heads, length, head_width), and a gradient to begin with."""
    generator = torch.Generator().manual_seed(length)
    query, key, value, direction = (
        torch.randn(1, heads, length, head_width, generator=generator).to(dtype) for _ in range(4)
    )
    return [query, key, value], direction


def measure(
    parts: list[Tensor], direction: Tensor, window: int, repeats: int, *, backward: bool
) -> dict[str, float]:
    """The fastest of alternating calls of each kind, in seconds."""
    leaves = [part.clone().requires_grad_(backward) for part in parts]
    length = leaves[0].shape[2]

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(*leaves, is_causal=True)

    def banded() -> Tensor:
        dtype, device = leaves[0].dtype, leaves[0].device
        biases = band_biases(length, window, None, dtype, device)
        return banded_attention(*leaves, biases, window)

    def timed(call: Callable[[], Tensor]) -> float:
        started = time.perf_counter()
        mixed = call()
        if backward:
            torch.autograd.grad(mixed, leaves, direction)
        return time.perf_counter() - started

    kinds = {"dense": dense, "banded": banded}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats + 1):
        for kind, call in kinds.items():
            found[kind].append(timed(call))
    return {kind: min(times[1:]) for kind, times in found.items()}


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """p of seconds ∝ lengthᵖ."""
    slope, _ = np.polyfit(np.log(lengths), np.log(seconds), 1)
    return float(slope)


def print_table(result: dict[str, Any]) -> None:
    table = Table(
        title=f"Attention of one sequence, {result['heads']} heads of {result['head_width']}, "
        f"{result['dtype']}, {result['threads']} threads: milliseconds, fastest",
        caption=f"banded: window {result['window']}; growth: p of seconds ∝ tokensᵖ",
    )
    table.add_column("tokens", no_wrap=True)
    for length in result["lengths"]:
        table.add_column(f"{length:,}", justify="right")
    table.add_column("growth", justify="right")
    for name in PASSES:
        kinds = result["seconds"][name]
        for kind, found in kinds.items():
            growth = result["growth_exponent"][name][kind]
            cells = [f"{1e3 * each:,.1f}" for each in found]
            table.add_row(f"{kind}, {name}", *cells, f"{growth:.2f}")
        pairs = zip(kinds["dense"], kinds["banded"], strict=True)
        table.add_row("dense / banded", *(f"{dense / banded:.1f}×" for dense, banded in pairs), "")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
