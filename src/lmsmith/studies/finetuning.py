"""Fine-tuning against prompting: accuracy over the number of labelled examples, on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lmsmith.core.progress import choose_progress
from lmsmith.corpus.labelled.task import LabelledTask
from lmsmith.evaluation.run import (
    PlannedTask,
    folder_name,
    model_to_evaluate,
    run_plan,
    with_measure,
)
from lmsmith.evaluation.tasks.shipped import shipped_tasks
from lmsmith.evaluation.tasks.spec import TaskSetting, TaskSpec
from lmsmith.options import TaskOptions
from lmsmith.training.machine import ResolvedMachine

Way = Literal["fine-tuned", "prompted", "rule"]

ALL = 0
"""Number of examples that stands for all of them."""

RULES: Mapping[str, str] = {
    "majority": "the commonest label",
    "bag_of_words": "regression over words",
}


@dataclass(frozen=True)
class Point:
    """A measurement of one way of doing a task.

    Attributes:
        name: what is done: ``GPT-1's form``, ``sst2/very``, ``regression over words``.
        examples: labelled examples that it learns from, or is shown.
        seed: of the examples drawn and of training.
    """

    way: Way
    name: str
    examples: int
    seed: int
    measure: str
    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Arm:
    """A fine-tuning run of a study: its name, number of examples, and the settings it changes."""

    name: str
    examples: int
    settings: tuple[str, ...]


FINETUNED = "fine-tuned"


def plan_finetuning(counts: Sequence[int], *, ablations: bool) -> list[Arm]:
    """A run for each number of examples; with ablations, two more of GPT-1's table 5 with all."""
    arms = [Arm(FINETUNED, count, (f"examples={count}",)) for count in counts]
    if ablations:
        most = ALL if ALL in counts else max(counts)
        arms += [
            Arm("without the language model's loss", most, (f"examples={most}", "lm_weight=0")),
            Arm("without pretraining", most, (f"examples={most}", "pretrained=false")),
        ]
    return arms


def points_of_run(arm: Arm, seed: int, metrics: Mapping[str, float]) -> list[Point]:
    """A run's measurements on the test examples: of the model, and of the rules beside it."""
    part = "test" if metrics.get("test_examples") else "validation"
    ends = [name for name in metrics if name.startswith(f"{part}_") and name.endswith("_low")]
    measure = ends[0][len(part) + 1 : -len("_low")]
    trained = int(metrics["train_examples"])

    def point(way: Way, name: str, prefix: str) -> Point:
        interval = [metrics[f"{prefix}_{measure}{end}"] for end in ("", "_low", "_high")]
        return Point(way, name, trained, seed, measure, *interval)

    rules = RULES if arm.name == FINETUNED else {}
    return [
        point("fine-tuned", arm.name, part),
        *(point("rule", name, r) for r, name in rules.items() if f"{r}_{measure}" in metrics),
    ]


def prompts_of(task: LabelledTask) -> list[TaskSpec]:
    """The evaluation tasks that ask for the same label, put to the fine-tuned model's test file."""
    test = task.data.test[0] if len(task.data.test) == 1 else ""
    found = [
        each for name, each in shipped_tasks().items() if name.split("/")[0] == task.name and test
    ]
    measures = [each for each in task.chosen_measures if each == "accuracy"]
    return [
        with_measure(replace(each, data=replace(each.data, file=test), published=()), "accuracy")
        for each in found
        if measures
    ]


def prompt_points(
    model: str,
    task: LabelledTask,
    shots: Sequence[int],
    limit: int,
    path: Sequence[Path],
    folder: Path,
    machine: ResolvedMachine,
    *,
    quiet: bool,
) -> list[Point]:
    """The model's accuracy with every prompt of the task, and every number of examples shown.

    Patterns with a gap (PET) show no examples and are asked without.

    Args:
        limit: test examples, the same ones that the fine-tuned models are measured on; 0 for all.
        folder: of the items' rows.
    """
    plan = [
        PlannedTask(f"{each.name}, {count} shots", each, TaskSetting(count, limit=limit or None))
        for each in prompts_of(task)
        for count in (shots if each.shows_examples and not each.prompt.pattern else (0,))
    ]
    if not plan:
        return []
    progress, options = choose_progress(f"prompts of {task.name}", quiet), TaskOptions()
    place = folder / folder_name(model)
    labels = [each.label for each in plan]
    with model_to_evaluate(model, place, labels, progress, machine, options) as asked:
        results = run_plan(asked, plan, path, place, progress)
    return [
        Point(
            "prompted",
            planned.task.name,
            planned.setting.shots or 0,
            0,
            "accuracy",
            result.headline.value,
            result.headline.low,
            result.headline.high,
        )
        for planned, result in zip(plan, results, strict=True)
    ]
