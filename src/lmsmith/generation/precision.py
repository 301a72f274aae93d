"""The precision that writes fastest on this machine: measured once, and kept in the cache folder.

A reply reads every matrix once a token, and its prompt's tokens multiply it together. So both are
timed with the operations that generation uses here, on a matrix that no processor's cache holds.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec
import torch

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, write_json
from lmsmith.core.paths import cache_folder
from lmsmith.core.version import VERSION
from lmsmith.generation.native.library import describe_kernels, describe_processor
from lmsmith.generation.native.operations import best_kernels
from lmsmith.generation.weights import Weight

Precision = Literal["bf16", "fp32"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS, OUTPUTS, INPUTS = 64, 6144, 4096
OUTPUTS_OF_MANY = 512
"""Outputs of the product of many rows, whose time is that of computing, not of reading."""
REPLY, PROMPT = 64, 256
"""Tokens of the reply and of the prompt that decide, as of a chat."""
MARGIN = 1.2
"""How many times as fast the other precision must be before it replaces the usual one."""
ROUNDS, SECONDS = 7, 0.5


@dataclass(frozen=True)
class Speed:
    """Milliseconds of a matrix of OUTPUTS x INPUTS.

    Attributes:
        one_row: multiplied by one row, as for a reply's token.
        of_many: for each of ROWS rows that multiply it together, as a prompt's do.
    """

    one_row: float
    of_many: float

    @property
    def of_chat(self) -> float:
        """For a reply of REPLY tokens to a prompt of PROMPT."""
        return REPLY * self.one_row + PROMPT * self.of_many


@dataclass(frozen=True)
class Measured:
    """What was measured, and when."""

    precision: Precision
    bf16: Speed
    fp32: Speed
    date: str

    def __str__(self) -> str:
        return (
            f"{OUTPUTS * INPUTS / 1e6:.0f}M weights, measured {self.date}: one row takes "
            f"{self.bf16.one_row:.2f} ms in bf16 and {self.fp32.one_row:.2f} in fp32, each of "
            f"{ROWS} together {self.bf16.of_many:.2f} and {self.fp32.of_many:.2f}; one thread"
        )


def fastest(usual: Precision, bf16: Speed, fp32: Speed) -> Precision:
    """The usual precision, unless the other one is faster by the margin.

    A processor on which both are about as fast so gets the same one at every measurement.
    """
    usual_speed, other_speed = (bf16, fp32) if usual == "bf16" else (fp32, bf16)
    other: Precision = "fp32" if usual == "bf16" else "bf16"
    return other if usual_speed.of_chat > MARGIN * other_speed.of_chat else usual


def fastest_precision(usual: Precision) -> Measured:
    """The measurement of this processor, version and kernels; made now if there is none.

    It is kept in a file, because a reply must not change with the load of the machine: all
    processes take what the first one found.

    Args:
        usual: taken unless the other one is clearly faster.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    parts = (VERSION, torch.__version__, describe_kernels(), capability, describe_processor())
    return _kept(usual, cache_folder() / f"precision-{usual}-{fingerprint(parts)[:16]}.json")


@functools.cache
def _kept(usual: Precision, path: Path) -> Measured:
    """What the file says; it is written first where there is none."""
    if (known := _read(path)) is not None:
        return known
    bf16, fp32 = measure()
    found = Measured(fastest(usual, bf16, fp32), bf16, fp32, date.today().isoformat())
    if (first := _read(path)) is not None:  # another process's
        return first
    with contextlib.suppress(UserError, OSError):  # a folder that cannot be written
        write_json(path, asdict(found))
    return found


def _read(path: Path) -> Measured | None:
    with contextlib.suppress(UserError, OSError, msgspec.ValidationError):
        return msgspec.convert(read_json(path), Measured)
    return None


@torch.inference_mode()
def measure() -> tuple[Speed, Speed]:
    """Speeds in bf16 and in float32, by turns, of each the best.

    One thread computes, and its own processor time counts: so other programs disturb it least.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure_alone()
    finally:
        torch.set_num_threads(threads)


def _measure_alone() -> tuple[Speed, Speed]:
    kernels, clock = best_kernels(), time.perf_counter
    if time.get_clock_info("thread_time").resolution < 1e-5:  # Windows has 15 ms
        clock = time.thread_time
    generator = torch.Generator().manual_seed(0)  # the global one is for dropout, and a run's
    numbers = torch.randn(256, INPUTS, generator=generator).repeat(OUTPUTS // 256, 1)
    products: list[Callable[[], object]] = []
    for dtype in DTYPES.values():
        whole, rows = numbers.to(dtype), numbers[:ROWS].to(dtype)
        for matrix, x in ((whole, rows[:1]), (whole[:OUTPUTS_OF_MANY], rows)):
            weight = kernels.prepare(Weight.in_rows(matrix))
            products.append(functools.partial(kernels.linear, x, weight, dtype))
    del numbers, whole, matrix
    best, end = [math.inf] * len(products), clock() + SECONDS
    for turn in range(ROUNDS):
        for number, product in enumerate(products):
            started = clock()
            product()
            best[number] = min(best[number], clock() - started)
        if turn and clock() > end:
            break
    one, many = 1e3, 1e3 * OUTPUTS / OUTPUTS_OF_MANY / ROWS
    return (
        Speed(best[0] * one, best[1] * many),
        Speed(best[2] * one, best[3] * many),
    )
