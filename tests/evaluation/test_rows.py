"""Rows come back from the disk as what they were, each of its kind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lmsmith.evaluation.rows import (
    AnswerRow,
    AnyRow,
    Choice,
    ChoiceRow,
    ClozeRow,
    DocumentRow,
    ItemLog,
    ProgramRow,
    RatedRow,
)

ROWS: list[AnyRow] = [
    ChoiceRow(
        id="0",
        shots=["3"],
        metrics={"accuracy": 1.0},
        gold=0,
        chosen={"accuracy": 0},
        choices=[Choice("a", -1.5, 2), Choice("b", -2.0, 1, -3.0)],
        scores={"accuracy": [-1.5, -2.0]},
    ),
    ClozeRow(id="1", metrics={"accuracy": 0.0}, gold="sea", log_prob=-3.25, tokens=1, truncated=4),
    DocumentRow(id="2", metrics={"bits_per_byte": [9.5, 3]}, log_prob=-6.5, tokens=2, windows=1),
    AnswerRow(id="3", metrics={"f1": 0.5}, texts=["é 12"], answers=["12"], answer="12", gold="12"),
    ProgramRow(id="4", metrics={"pass_at_1": 1.0}, texts=["pass"], verdicts=["passed"]),
    RatedRow(id="5", metrics={}, texts=["x"], ratings=[{"toxicity": 0.5}], verdicts=["0.50"]),
]


def test_every_kind_comes_back(tmp_path: Path) -> None:
    file, identity = tmp_path / "rows.jsonl", {"fingerprint": "one"}
    log: ItemLog[AnyRow] = ItemLog(file, identity, AnyRow)
    log.append(ROWS[:4], 1.0)
    log.append(ROWS[4:], 0.5)
    with file.open("ab") as stream:
        stream.write(b'{"kind": "cloze", "id": "9", "pro')  # a kill
    again: ItemLog[AnyRow] = ItemLog(file, identity, AnyRow)
    assert list(again.rows.values()) == ROWS
    assert again.seconds == 1.5
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line["kind"] for line in lines] == [
        "multiple_choice", "cloze", "perplexity", "free_form", "code", "rated",
    ]  # fmt: skip
    assert ItemLog(file, {"fingerprint": "other"}, AnyRow).rows == {}


@pytest.mark.parametrize("number", [math.nan, -math.inf, np.float64("inf")])
def test_what_is_not_finite_is_null(tmp_path: Path, number: float) -> None:
    file, identity = tmp_path / "rows.jsonl", {"fingerprint": "one"}
    row = ClozeRow(id="0", metrics={"perplexity": number}, gold="a", log_prob=number, tokens=1)
    ItemLog(file, identity, AnyRow).append([row], 0.0)
    (again,) = ItemLog(file, identity, AnyRow).rows.values()
    assert again.log_prob is None
    assert math.isnan(again.value("perplexity"))
