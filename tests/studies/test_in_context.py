"""Studies: the same items in every arm, compared in pairs; resumed like any evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.evaluation.measures import aggregate
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ItemRow
from lmsmith.evaluation.run import TaskResult, evaluate_task
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import DataSpec, PromptSpec, TaskSetting, TaskSpec
from lmsmith.studies.in_context import Arm, ArmResult, chance, compare_arms, plan_arms, spread

TASK = TaskSpec(
    "made",
    "multiple_choice",
    DataSpec(file="made.jsonl"),
    prompt=PromptSpec(context="the {{ x }} is", choices="['blue', 'the sea']", gold="y"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    words = ["dog", "cat", "house", "river", "mat", "sky", "sea", "sister"]
    rows = [{"x": f"{word} {other}", "y": len(other) % 2} for word in words for other in words]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def found(
    subject: EvaluatedModel, data: Path, kind: str, shots: tuple[int, ...]
) -> list[ArmResult]:
    arms = plan_arms(kind, TASK, shots, 6, TaskSetting(limit=40))  # type: ignore[arg-type]
    progress = QuietProgress()
    results = [
        evaluate_task(subject, arm.task, arm.setting, [data], data, progress) for arm in arms
    ]
    return compare_arms(arms, results)


def test_labels_are_compared_with_gold_ones_on_the_same_items(
    tiny: EvaluatedModel, data: Path
) -> None:
    arms = found(tiny, data, "labels", (3,))
    assert [each.arm.name for each in arms] == [
        "gold labels",
        "random labels",
        "random words as labels",
        "inputs without labels",
        "labels renamed",
        "no demonstrations",
    ]
    assert len({each.result.log for each in arms}) == 6
    gold = arms[0].result
    for each in arms[1:]:
        assert [row.id for row in each.result.rows] == [row.id for row in gold.rows]
        assert each.against_first is not None
        difference = each.result.headline.value - gold.headline.value
        assert each.against_first.difference.value == pytest.approx(difference)
    same_shots = [row.shots for row in arms[1].result.rows]
    assert same_shots == [row.shots for row in gold.rows]
    assert chance(arms) == 0.5


def test_orders_show_the_same_examples_and_the_spread_is_theirs(
    tiny: EvaluatedModel, data: Path
) -> None:
    arms = found(tiny, data, "order", (3,))
    assert len(arms) == 6  # 3! of them
    for rows in zip(*(each.result.rows for each in arms), strict=True):
        assert len({tuple(row.shots) for row in rows}) == 6
        assert len({tuple(sorted(row.shots)) for row in rows}) == 1
    values = [each.result.headline.value for each in arms]
    of_all = spread(arms)
    assert (of_all.lowest, of_all.highest) == (min(values), max(values))
    assert of_all.deviation == pytest.approx(float(np.std(values, ddof=1)))
    right = np.array([[r.metrics["accuracy"] for r in each.result.rows] for each in arms])
    assert of_all.unsteady == np.mean([len(set(column)) > 1 for column in right.T])


def test_items_that_are_right_in_part_are_neither_right_nor_wrong() -> None:
    task = replace(TASK, headline="f1")

    def arm(name: str, values: list[float]) -> ArmResult:
        rows = [ItemRow(id=str(n), metrics={"f1": value}) for n, value in enumerate(values)]
        setting = TaskSetting(fixed=True)
        result = TaskResult(task, setting, aggregate(rows), 2, 0, 3.0, 0.0, rows, Path())
        return ArmResult(Arm(name, task, setting), result, None)

    assert spread([arm("1", [0.4, 0.5]), arm("2", [0.41, 0.5])]).unsteady is None
    assert spread([arm("1", [1.0, 0.0]), arm("2", [0.0, 0.0])]).unsteady == 0.5


def test_shots_go_with_the_instruction_and_without_it() -> None:
    task = find_tasks(["scrambles/insertion"])[0]
    arms = plan_arms("shots", task, (4, 0, 1), 8, TaskSetting())
    assert [(a.line, a.name) for a in arms] == [
        (line, name)
        for line in ("with the instruction", "without it")
        for name in ("0 shots", "1 shot", "4 shots")
    ]
    assert arms[3].task.prompt.instruction == ""
    assert arms[3].task.name != task.name


@pytest.mark.parametrize(
    ("kind", "shots", "orders", "task", "said"),
    [
        ("labels", (1, 2), 8, "boolq", "has one number"),
        ("labels", (0,), 8, "boolq", "1 or more"),
        ("order", (1,), 8, "boolq", "2 or more"),
        ("order", (4,), 1, "boolq", "--orders 1"),
        ("order", (4,), 8, "gsm8k", "written out"),
        ("shots", (4,), 8, "wikitext2", "shows no examples"),
    ],
)
def test_a_study_that_cannot_be_made_says_why(
    kind: str, shots: tuple[int, ...], orders: int, task: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan_arms(kind, find_tasks([task])[0], shots, orders, TaskSetting())  # type: ignore[arg-type]
