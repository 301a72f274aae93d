"""What the measured models say together: which rises are clear, and what the small ones foretold.

A rise is clear where the two 95 % intervals do not touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmsmith.evaluation.bootstrap import Interval
from lmsmith.evaluation.scale.documents import SHARES
from lmsmith.evaluation.scale.measuring import SHOTS, Count
from lmsmith.evaluation.scale.patterns import PATTERNS
from lmsmith.evaluation.scale.power_law import Prediction, predict_largest

Measured = Mapping[str, Any]

CHAIN_DIGITS = 4
"""Numbers of fewer digits are added directly by all but the smallest models."""


@dataclass(frozen=True)
class Rise:
    """Two shares, the second of which should be the higher.

    Attributes:
        what: ``shots``, ``size`` or ``chain``.
        task: a pattern, or the sums.
        low, high: what each is the share of.
        before, after: the shares with their intervals.
    """

    what: str
    task: str
    low: str
    high: str
    before: Interval
    after: Interval

    @property
    def is_clear(self) -> bool:
        """Whether all of the second's interval is above all of the first's."""
        return self.after.low > self.before.high

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_clear": self.is_clear}


def pattern_interval(measured: Measured, kind: str, shots: int) -> Interval:
    """Accuracy on a pattern after so many examples."""
    return Count(*measured["patterns"][kind][str(shots)]).interval


def sum_interval(measured: Measured, style: str, digits: int) -> Interval:
    """Accuracy on sums of so many digits, ``direct`` or by ``chain``."""
    return Count(*measured["sums"][style][str(digits)]).interval


def digits_of(measured: Measured) -> list[int]:
    return sorted(int(digits) for digits in measured["sums"]["direct"])


def find_rises(models: Sequence[Measured]) -> list[Rise]:
    """With shots (of the largest model), with size, and with a chain of thought (best size)."""
    smallest, largest = models[0], models[-1]
    rises = [
        Rise(
            "shots",
            kind,
            f"{largest['model']}, 1 shot",
            f"{largest['model']}, {SHOTS[-1]} shots",
            pattern_interval(largest, kind, 1),
            pattern_interval(largest, kind, SHOTS[-1]),
        )
        for kind in PATTERNS
    ]
    rises += [
        Rise(
            "size",
            kind,
            f"{smallest['model']}, {SHOTS[-1]} shots",
            f"{largest['model']}, {SHOTS[-1]} shots",
            pattern_interval(smallest, kind, SHOTS[-1]),
            pattern_interval(largest, kind, SHOTS[-1]),
        )
        for kind in PATTERNS
    ]
    for digits in digits_of(largest):
        if digits < CHAIN_DIGITS:
            continue
        best = max(
            models,
            key=lambda each: (
                sum_interval(each, "chain", digits).low - sum_interval(each, "direct", digits).high
            ),
        )
        rises.append(
            Rise(
                "chain",
                f"sums of {digits} digits",
                f"{best['model']}, direct",
                f"{best['model']}, chain of thought",
                sum_interval(best, "direct", digits),
                sum_interval(best, "chain", digits),
            )
        )
    return rises


def predict_losses(models: Sequence[Measured]) -> dict[str, Prediction | None]:
    """For each family, what the smaller models foretell of the largest one's held-out loss."""
    compute = [float(each["compute"]) for each in models]
    return {
        family: predict_largest(compute, [float(e["losses"][family]["value"]) for e in models])
        for family in SHARES
    }
