"""Two models on the same items: the difference with its interval, and which items changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.evaluation.measures import measure_of, paired_difference, value_of
from lmsmith.evaluation.rows import ItemRow
from lmsmith.statistics.intervals import Interval


@dataclass(frozen=True)
class Comparison:
    """A task put to two models, a and b.

    Attributes:
        task: its name, with shots.
        measure: that they are compared by.
        value_a, value_b: theirs on the items that both answered.
        difference: b less a, items resampled for both together.
        items: how many both answered.
        gained: ids of items that b has right and a has not.
        lost: the other way round.
    """

    task: str
    measure: str
    value_a: float
    value_b: float
    difference: Interval
    items: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` where the interval holds 0 or is unknown."""
        if not (self.difference.low > 0 or self.difference.high < 0):
            return "unclear"
        higher = self.difference.value > 0
        return "better" if higher == measure_of(self.measure).higher_is_better else "worse"

    @property
    def is_unchanged(self) -> bool:
        """Whether every item counts the same in both."""
        alike = not self.gained and not self.lost
        return measure_of(self.measure).is_share and alike and self.difference.value == 0

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            **vars(self),
            "difference": vars(self.difference),
            "verdict": self.verdict,
            "gained": list(self.gained),
            "lost": list(self.lost),
        }


def summary(comparisons: Sequence[Comparison]) -> str:
    """What several come to: "better on 2 of 9, worse on 1; no item changed in 3: …", of tasks.

    A task is counted as better, or as worse, if it is by any of its measures.
    """
    tasks: dict[str, list[Comparison]] = {}
    for each in comparisons:
        tasks.setdefault(each.task, []).append(each)

    def count(verdict: str) -> int:
        return sum(any(each.verdict == verdict for each in of) for of in tasks.values())

    said = f"better on {count('better')} of {len(tasks)}, worse on {count('worse')}"
    same = [task for task, of in tasks.items() if all(each.is_unchanged for each in of)]
    return f"{said}; no item changed in {len(same)}: {_listed(same)}" if same else said


def _listed(tasks: Sequence[str]) -> str:
    """Names, each with its numbers of shots: "lambada, triviaqa (0, 1, 16-shot)"."""
    found: dict[str, list[str]] = {}
    for each in tasks:
        name, _, shots = each.partition(", ")
        found.setdefault(name, []).append(shots.removesuffix("-shot") or "0")
    return ", ".join(
        name if shots == ["0"] else f"{name} ({', '.join(shots)}-shot)"
        for name, shots in found.items()
    )


def compare_rows(
    task: str, measure: str, rows_a: Sequence[ItemRow], rows_b: Sequence[ItemRow], seed: int = 0
) -> Comparison:
    """Compare by a measure on the items that both have.

    Raises:
        ValueError: they have none in common.
    """
    by_id = {row.id: row for row in rows_b}
    pairs = [(row, by_id[row.id]) for row in rows_a if row.id in by_id]
    if not pairs:
        raise ValueError(f"{task}: no item that both have answered")
    first, second = [list(each) for each in zip(*pairs, strict=True)]
    difference = paired_difference(first, second, measure, seed=seed)
    values = [value_of(rows, measure) for rows in (first, second)]
    gained: list[str] = []
    lost: list[str] = []
    if measure_of(measure).is_share:
        for a, b in pairs:
            before, after = a.value(measure), b.value(measure)
            if before != after:
                better = (after > before) == measure_of(measure).higher_is_better
                (gained if better else lost).append(a.id)
    return Comparison(
        task, measure, values[0], values[1], difference, len(pairs), tuple(gained), tuple(lost)
    )
