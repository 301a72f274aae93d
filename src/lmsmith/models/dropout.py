"""Dropout (Srivastava et al. 2014), whose random numbers a CPU draws four at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.device import is_host

LEVELS = 1 << 16
"""A number's fate is decided by 16 random bits: probabilities are multiples of 1 / 65,536."""

ONE = 0x3F80
"""The bits of 1.0 in bf16."""


class Dropout(nn.Dropout):
    """`nn.Dropout` by `drop`."""

    def forward(self, input: Tensor) -> Tensor:
        return drop(input, self.p) if self.training else input


def drop(x: Tensor, probability: float) -> Tensor:
    """Each number is 0 with this probability, else divided by the probability to stay.

    On a CPU PyTorch draws 53 random bits for each number, which took a tenth of a fine-tuning step;
    here it is 16, from the same generator. The probability is rounded to 1 / 65,536.
    """
    if not probability:
        return x
    if not is_host(x.device) or torch.compiler.is_compiling() or x.is_meta:
        return F.dropout(x, probability)
    result: Tensor = _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]
    return result


def kept_numbers(shape: torch.Size, probability: float) -> Tensor:
    """1 where a number stays, 0 where it is dropped, in bf16; from the CPU's generator.

    The draws become ones in place: 16 bits that are compared, and then are those of 1.0 or 0.0.
    """
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    fates = bits.view(torch.int16)[:count].view(shape)
    return fates.ge_(_dropped(probability) - LEVELS // 2).mul_(ONE).view(torch.bfloat16)


def _dropped(probability: float) -> int:
    """Fates that drop a number; one is always left that keeps it."""
    return min(round(probability * LEVELS), LEVELS - 1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept = kept_numbers(x.shape, probability)
        ctx.save_for_backward(kept)
        ctx.factor = LEVELS / (LEVELS - _dropped(probability))
        return (x * kept.to(x.dtype)).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad_outputs[0] * kept.to(grad_outputs[0].dtype)).mul_(ctx.factor), None
