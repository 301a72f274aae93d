"""Findings on all measured models: clear rises, and the loss that the small ones predict.

The rises are chosen beforehand, not by their outcome: with shots on noisy copies, with size on sums
by a chain, and with a chain on the longer sums. A rise is clear where the two 95 % intervals do not
touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmsmith.statistics.fits import Prediction, predict_largest
from lmsmith.statistics.intervals import Interval, wilson_interval
from lmsmith.studies.scale.documents import SHARES
from lmsmith.studies.scale.measuring import SHOTS

Measured = Mapping[str, Any]

SHOTS_PATTERN = "noisy_copies"
"""Pattern of the rise with shots: each example tells something, and none tells all."""

CHAIN_DIGITS = 3
"""Fewest digits of the sums on which a chain is compared: shorter ones are easy without."""

FEWEST_LAYERS = 2
"""Fewest layers of a model in a fit: one layer cannot look up what it has read."""


@dataclass(frozen=True)
class Rise:
    """Two shares, the second of which should be the higher.

    Attributes:
        what: ``shots``, ``size`` or ``chain``.
        low, high: names of the two shares.
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
    """Accuracy on a pattern after ``shots`` examples."""
    return wilson_interval(*measured["patterns"][kind][str(shots)])


def sum_interval(measured: Measured, style: str, digits: int) -> Interval:
    """Accuracy on sums of numbers with ``digits`` digits, ``direct`` or by ``chain``."""
    return wilson_interval(*measured["sums"][style][str(digits)])


def digits_of(measured: Measured) -> list[int]:
    return sorted(int(digits) for digits in measured["sums"]["direct"])


def all_sums_interval(measured: Measured, style: str) -> Interval:
    """Accuracy on all sums, of any number of digits."""
    right, items = zip(*measured["sums"][style].values(), strict=True)
    return wilson_interval(sum(right), sum(items))


def find_rises(models: Sequence[Measured]) -> list[Rise]:
    """With shots and with a chain of thought, both of the largest model, and with size."""
    smallest, largest = models[0], models[-1]
    small, large = str(smallest["model"]), str(largest["model"])
    one, most = (pattern_interval(largest, SHOTS_PATTERN, shots) for shots in (1, SHOTS[-1]))
    sums = [all_sums_interval(each, "chain") for each in (smallest, largest)]
    rises = [
        Rise("shots", SHOTS_PATTERN, f"{large}, 1 shot", f"{large}, {SHOTS[-1]} shots", one, most),
        Rise("size", "sums by a chain", small, large, *sums),
    ]
    for digits in digits_of(largest):
        if digits >= CHAIN_DIGITS:
            task = f"sums of {digits} digits"
            direct, chain = (sum_interval(largest, way, digits) for way in ("direct", "chain"))
            names = (f"{large}, direct", f"{large}, chain of thought")
            rises.append(Rise("chain", task, *names, direct, chain))
    return rises


def is_fitted(measured: Measured) -> bool:
    """Whether it belongs to the law: models of one layer do not (Kaplan et al. 2020, figure 6)."""
    return int(measured["layers"]) >= FEWEST_LAYERS


def predict_losses(models: Sequence[Measured]) -> dict[str, Prediction | None]:
    """For each family, the largest model's held-out loss as the smaller ones predict it."""
    fitted = [each for each in models if is_fitted(each)]
    if not fitted:
        return dict.fromkeys(SHARES)
    compute = [float(each["compute"]) for each in fitted]
    losses = {f: [float(each["losses"][f]["value"]) for each in fitted] for f in SHARES}
    return {family: predict_largest(compute, values) for family, values in losses.items()}
