"""Sums of two numbers, written directly or digit by digit with carries; some pairs held out.

``47+85=132`` answers at once; ``47+85:7+5+0=12;4+8+1=13;=132`` adds the digits from the right, each
step with the carry of the one before (chain of thought, Wei et al. 2022; scratchpads, Nye et al.
2021). The sign after the second number chooses between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIRECT, CHAIN = "=", ":"
HELD_OUT = 8
"""One in so many pairs of numbers is never trained on."""


@dataclass(frozen=True)
class Sum:
    """Two numbers to be added."""

    left: int
    right: int

    @property
    def answer(self) -> str:
        return str(self.left + self.right)

    @property
    def held_out(self) -> bool:
        """Whether it, or the same with its numbers exchanged, is kept for measuring."""
        low, high = sorted((self.left, self.right))
        mixed = (low * 0x9E3779B1 + high * 0x85EBCA77) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        return (mixed ^ (mixed >> 13)) % HELD_OUT == 0

    def prompt(self, style: str) -> str:
        return f"{self.left}+{self.right}{style}"

    def reply(self, style: str) -> str:
        """What follows the prompt."""
        return self.answer if style == DIRECT else f"{self.chain}={self.answer}"

    @property
    def chain(self) -> str:
        """The steps, from the last digits on: ``7+5+0=12;4+8+1=13;``."""
        width = max(len(str(self.left)), len(str(self.right)))
        steps, carry = [], 0
        pairs = zip(str(self.left).zfill(width), str(self.right).zfill(width), strict=True)
        for one, other in reversed(list(pairs)):
            total = int(one) + int(other) + carry
            steps.append(f"{one}+{other}+{carry}={total:02d};")
            carry = total // 10
        return "".join(steps)


def read_answer(style: str, reply: str) -> str:
    """The answer in a reply: all of it, or what follows its last sign of equality."""
    return reply if style == DIRECT else reply.rpartition("=")[2]


def draw_sum(digits: int, generator: np.random.Generator, *, held_out: bool) -> Sum:
    """Two numbers of so many digits, from the held-out pairs or from the others."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    while True:
        left, right = (int(x) for x in generator.integers(low, 10**digits, size=2))
        found = Sum(left, right)
        if found.held_out == held_out:
            return found
