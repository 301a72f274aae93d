"""Measures under lm-evaluation-harness's names are its figures, by its formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lmsmith.cli.eval import results_table
from lmsmith.evaluation.measures import aggregate, lm_eval_metrics
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ChoiceRow, DocumentRow
from lmsmith.evaluation.run import TaskResult, make_method
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import DataSpec, PromptSpec, TaskSetting, TaskSpec

CHOICE = TaskSpec(
    "made",
    "multiple_choice",
    DataSpec(file="made.jsonl"),
    headline="accuracy_unconditional",
    prompt=PromptSpec(context="{{ q }}", choices="choices", gold="gold"),
)
WORDS = ["sea", "the little house", "três irmãs", "a cat and a dog by the river", "sky", "猫"]


def rows_of(model: EvaluatedModel, task: TaskSpec, fields: list[dict[str, object]]) -> list[object]:
    items = [Item(str(n), each, "row") for n, each in enumerate(fields)]
    method = make_method(model, task, [with_shots(task, item, []) for item in items])
    return list(method.answer(range(len(items))))


def test_choices(tiny: EvaluatedModel) -> None:
    fields: list[dict[str, object]] = [
        {"q": f"the {a}", "choices": [a, b, c], "gold": (len(a) + len(b)) % 3}
        for a in WORDS
        for b in WORDS
        for c in WORDS
        if len({a, b, c}) == 3
    ]
    rows = rows_of(tiny, CHOICE, fields)
    right: dict[str, list[bool]] = {}
    for row, asked in zip(rows, fields, strict=True):
        assert isinstance(row, ChoiceRow)
        texts = [choice.text for choice in row.choices]
        lls = np.array([choice.log_prob for choice in row.choices], np.float64)
        unconditional = np.array([choice.alone for choice in row.choices], np.float64)
        for name, scores in {
            "acc": lls,
            "acc_norm": lls / [len(text) for text in texts],
            "acc_bytes": lls / [len(text.encode()) for text in texts],
            "acc_mutual_info": lls - unconditional,
        }.items():
            right.setdefault(name, []).append(int(np.argmax(scores)) == asked["gold"])
    found = lm_eval_metrics(aggregate(rows, resamples=10))  # type: ignore[arg-type]
    assert {name: each.value for name, each in found.items()} == pytest.approx(
        {name: np.mean(each) for name, each in right.items()}
    )
    assert len({each.value for each in found.values()}) > 1, "no two differ: choose other words"


def test_documents_and_the_table(tiny: EvaluatedModel) -> None:
    task = TaskSpec("texts", "perplexity", DataSpec(file="made.txt"))
    texts = ["Once there was a house.\nBy the sea.\n", "A cat sat. " * 9, "três irmãs"]
    rows = rows_of(tiny, task, [{"text": text} for text in texts])
    nats = 0.0
    for row in rows:
        assert isinstance(row, DocumentRow)
        assert row.log_prob is not None
        nats -= row.log_prob
    size = sum(len(text.encode()) for text in texts)
    measures = aggregate(rows, resamples=10)  # type: ignore[arg-type]
    found = lm_eval_metrics(measures)
    assert set(found) == {"bits_per_byte", "byte_perplexity"}
    assert found["bits_per_byte"].value == pytest.approx(nats / size / math.log(2), abs=1e-5)
    assert found["byte_perplexity"].value == pytest.approx(math.exp(nats / size), abs=1e-4)
    assert found["byte_perplexity"].low < found["byte_perplexity"].value
    result = TaskResult(task, TaskSetting(), measures, 3, 0, 0, 0.0, rows, Path("x"))  # type: ignore[arg-type]
    assert result.as_dict()["metrics"] == {name: vars(each) for name, each in found.items()}
    column = results_table([result]).columns[3]
    assert "bits per byte (bits_per_byte)" in list(column.cells)
    assert "perplexity a word" in list(column.cells)
