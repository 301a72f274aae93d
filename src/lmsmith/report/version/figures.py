"""Gates in a picture: how far each figure and its interval are from the gate's margin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.catalogue.versions import Gate
from lmsmith.report import numbers
from lmsmith.report.drawing import COLOURS, ReportFigure, canvas


@dataclass(frozen=True)
class GateWords:
    """A gate in words.

    Attributes:
        title: what is measured.
        above: whether a greater figure is better.
    """

    title: str
    above: bool = False


GATES: Mapping[str, GateWords] = {
    "reward_above_rules": GateWords("Reward model above trivial rules", above=True),
    "win_rate": GateWords("Win rate, by the judge", above=True),
    "win_rate_equal_length": GateWords("Win rate at equal length", above=True),
    "kl": GateWords("KL from the current version"),
    "length": GateWords("Length against the current version"),
    "ended": GateWords("Fewer ended answers"),
    "unrepeated": GateWords("More repetition"),
    "willing": GateWords("More refusals"),
    "trick_longer": GateWords("Gain by padding"),
    "trick_flattery": GateWords("Gain by flattery"),
    "trick_repetition": GateWords("Gain by saying it twice"),
    "tasks": GateWords("Tasks"),
    "safety": GateWords("Safety tasks"),
}

_STATES = {"passed": "reward", "failed": "sft"}


@dataclass(frozen=True)
class Distance:
    """How far a gate is from its margin, in its own unit: positive is good."""

    value: float
    low: float
    high: float


def distance_of(gate: Gate) -> Distance | None:
    """The distance of a gate's figure and interval from its margin; None if it has none.

    The length ratio is measured in logarithms, since a half is as far from 1 as a double.
    """
    if gate.value is None or gate.margin is None:
        return None
    low = gate.value if gate.low is None else gate.low
    high = gate.value if gate.high is None else gate.high
    if not all(map(math.isfinite, (gate.value, low, high))):
        return None
    if gate.name == "length":
        if min(gate.value, low, high) <= 0:
            return None
        most = math.log(gate.margin)
        away = [abs(math.log(end)) for end in (low, high)]
        nearest = 0.0 if low <= 1 <= high else min(away)
        return Distance(most - abs(math.log(gate.value)), most - max(away), most - nearest)
    word = GATES.get(gate.name)
    sign = 1.0 if word is not None and word.above else -1.0
    ends = sorted((sign * (low - gate.margin), sign * (high - gate.margin)))
    return Distance(sign * (gate.value - gate.margin), *ends)


def draw_gates(gates: Sequence[Gate]) -> ReportFigure | None:
    """A row a gate, each at its own scale: right of the line is passed."""
    found = [(gate, away) for gate in gates if (away := distance_of(gate)) is not None]
    if not found:
        return None
    ends: dict[str, Any] = {"marker": "|", "markersize": 8, "markeredgewidth": 1.5}
    with canvas((6.4, 0.55 + 0.3 * len(found))) as (figure, (axes,)):
        for place, (gate, away) in enumerate(found):
            scale = max(abs(away.value), abs(away.low), abs(away.high)) or 1.0
            colour = COLOURS[_STATES.get(gate.state, "muted")]
            axes.plot([away.low / scale, away.high / scale], [place] * 2, color=colour, **ends)
            axes.plot([away.value / scale], [place], color=colour, marker="o", markersize=5)
            words = f"{numbers.number(gate.value)} against {numbers.number(gate.margin)}"
            axes.text(1.12, place, words, va="center")
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        titles = [GATES[g.name].title if g.name in GATES else g.name for g, _ in found]
        axes.set_yticks(range(len(found)), titles)
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set(xlim=(-1.08, 2.0), ylim=(len(found) - 0.4, -0.6))
        axes.set_xticks([-0.5, 0, 0.5], ["failed", "margin", "passed"])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        return ReportFigure.of(
            figure,
            "gates",
            "Each gate against its margin",
            "The point is the figure and the bar its 95 % interval, each row at its own scale. "
            "Right of the line is good. Gates on which the candidate must be better need their "
            "whole bar there; the others need their point there.",
            "Interval chart: distance of each gate's figure from its margin.",
        )
