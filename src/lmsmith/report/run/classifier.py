"""A classifier on the page: what is taken for what, and where it is most wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lmsmith.core.files import growing_rows
from lmsmith.report.numbers import as_number
from lmsmith.report.run.records import RunRecord
from lmsmith.report.run.samples import LONG_REPLY

MOST_LABELS = 20
"""Labels of a confusion matrix that is shown."""

WORST = 12
"""Errors on the page; all predictions are in finetune/predictions.jsonl."""


@dataclass(frozen=True)
class Confusion:
    """How often each label (row) is predicted as each (column).

    ``rows`` are label, its counts with their share of the row, and the row's number of examples.
    """

    labels: list[str]
    rows: list[tuple[str, list[tuple[int, float]], int]]


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction, or a number far off; ``sure`` is the model's probability of its answer,
    or the distance of the number."""

    texts: list[str]
    right: str
    said: str
    sure: str
    cut: bool


@dataclass(frozen=True)
class Predictions:
    """What the stage finetune predicted of the examples that it did not learn from."""

    count: int
    wrong: int
    confusion: Confusion | None
    worst: list[Mistake]


def read_predictions(run: RunRecord) -> Predictions | None:
    """The predictions of the stage finetune; None where there are none."""
    rows = growing_rows(run.folder / "finetune" / "predictions.jsonl")
    if not rows:
        return None
    numbers = "number" in rows[0]
    wrong = [row for row in rows if numbers or row.get("label") != row.get("right")]
    wrong.sort(key=lambda row: -(as_number(row.get("error")) or 0.0))
    choice = any("answers" in row for row in rows)
    confusion = None if numbers or choice else _confusion(rows)
    worst = [_mistake(row) for row in wrong[:WORST]]
    return Predictions(len(rows), 0 if numbers else len(wrong), confusion, worst)


def _confusion(rows: list[dict[str, Any]]) -> Confusion | None:
    labels = [str(label) for label in rows[0].get("probabilities") or {}]
    if not 2 <= len(labels) <= MOST_LABELS:
        return None
    cells = Counter((str(row.get("right")), str(row.get("label"))) for row in rows)
    totals = Counter(str(row.get("right")) for row in rows)
    return Confusion(
        labels,
        [
            (right, [_cell(cells[right, said], totals[right]) for said in labels], totals[right])
            for right in labels
        ],
    )


def _cell(count: int, total: int) -> tuple[int, float]:
    return count, count / total if total else 0.0


def _mistake(row: dict[str, Any]) -> Mistake:
    texts = [_shortened(str(text)) for text in row.get("texts") or []]
    if "number" in row:
        right, said = as_number(row.get("right")), as_number(row.get("number"))
        off = as_number(row.get("error")) or 0.0
        return Mistake(texts, f"{right or 0:g}", f"{said or 0:.2f}", f"{off:.2f} off", False)
    sure = as_number(row.get("probability")) or 0.0
    right_label, label = _shortened(str(row.get("right"))), _shortened(str(row.get("label")))
    return Mistake(texts, right_label, label, f"{sure:.1%} sure", bool(row.get("cut")))


def _shortened(text: str) -> str:
    return text if len(text) <= LONG_REPLY else f"{text[:LONG_REPLY]} …"
