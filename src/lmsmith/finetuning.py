"""Python functions of ``lmsmith finetune`` and ``lmsmith study finetune``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api import Recorded, RunResult, run_loaded, stage_recipe
from lmsmith.core.errors import UserError
from lmsmith.core.files import growing_rows, write_json, write_jsonl
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.options import Precision, command_line, documented
from lmsmith.runs.identity import recipe_identity

if TYPE_CHECKING:
    from lmsmith.studies.finetuning import Arm, Point


@documented
def finetune(
    model: str,
    task: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    set: Sequence[str] = (),
    quiet: bool = False,
) -> RunResult:
    """Fine-tune a model on labelled examples: a classifier, a scorer or a chooser, as GPT-1 did.

    Run it again after anything (Ctrl-C, kill): what was cut off continues.

    Args:
        model: A registered name, a run, or the path of a model.
        task: A shipped task (cb, cola, mrpc, rte, sst2, stsb) or a .toml file that names the
            columns of your data.
        data: Where the task's files are; also LMSMITH_DATA.
        out: The run's folder; runs/finetune-TASK by default.
        set: Change a setting of the stage, e.g. epochs=1, adapter.rank=16; or of the recipe,
            e.g. seed=3, machine.threads=1.
        quiet: Show no progress, only warnings.

    Returns:
        The run: its metrics are in ``record["stages"]["finetune"]["metrics"]``, and the model in
        ``folder / "finetune" / "model"``.

    Raises:
        UserError: no such model or task, or data that cannot be learnt from.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.finetune("smollm2-135m", "sst2", data="data").folder        # doctest: +SKIP
    """
    recipe = _recipe(model, task, data, set)
    place = out or Path("runs") / recipe.name
    return run_loaded(recipe, place, f"{recipe.name}: {model}", quiet=quiet)


def _recipe(model: str, task: str, data: Path | None, settings: Sequence[str]) -> Recipe:
    given = {"task": task, **({"data": str(data)} if data else {})}
    settings = [f"base.model={json.dumps(model)}", *settings]
    return stage_recipe(f"finetune-{Path(task).stem}", "finetune", given, settings)


@dataclass(frozen=True, kw_only=True)
class FinetuneStudy(Recorded):
    """Fine-tuning beside prompting: by task, what was measured of each way."""

    tasks: dict[str, list[Point]]


@documented
def study_finetune(
    model: str,
    *,
    tasks: Sequence[str] = ("sst2",),
    examples: Sequence[str] = ("8", "32", "128", "512", "all"),
    seeds: int = 1,
    shots: Sequence[int | str] = (0, 4),
    limit: int = 0,
    ablations: bool = False,
    data: Path | None = None,
    precision: Precision = "auto",
    threads: int = 0,
    out: Path = Path("evals/study-finetune"),
    set: Sequence[str] = (),
    quiet: bool = False,
) -> FinetuneStudy:
    """Fine-tune a model on more and more labelled examples, ask it by prompts, and draw both.

    The prompts are those of the evaluation task of the same name (lmsmith tasks ls): zero-shot
    heuristics ("very"), few-shot prompts and PET's patterns; beside them the commonest label and a
    logistic regression over words. All are measured on the same test examples. Run it again after
    Ctrl-C or a kill: it goes on.

    Args:
        model: A registered name, a run, or the path of a model.
        tasks: Shipped tasks (cb, cola, mrpc, rte, sst2, stsb) or .toml files, as for finetune.
        examples: Numbers of labelled examples to learn from; all stands for all.
        seeds: Runs for each number, with other examples and another order.
        shots: Numbers of examples in a prompt.
        limit: Only so many test examples, drawn by a seed; 0 for all.
        ablations: Also without the language model's loss, and without pretraining, as GPT-1's
            table 5.
        data: Where the tasks' files are; also LMSMITH_DATA.
        out: The results and the page go here.
        set: Change a setting of every run, e.g. adapter.rank=16.

    Raises:
        UserError: no such model or task, or data that cannot be learnt from.

    >>> lmsmith.study_finetune("smollm2-135m", tasks=["rte"]).report        # doctest: +SKIP
    """
    arguments = dict(locals())
    from lmsmith.corpus.labelled.task import locate_task
    from lmsmith.evaluation.run import shot_counts
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.report.study.finetuning_page import build_finetuning_page, finetuning_record
    from lmsmith.runs.stage_folder import describe_hardware
    from lmsmith.studies.finetuning import plan_finetuning, prompt_points
    from lmsmith.training.machine import prepare_process

    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more", "e.g. --seeds 3")
    shown = [count for count in shot_counts(shots) if count is not None]
    path = search_path([data] if data else [])
    located = [locate_task(word, path) for word in tasks]
    names = [each.task.name for each in located]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--tasks: two of the name {twice}", "give one of them another name")
    arms = plan_finetuning([_count(each) for each in examples], ablations=ablations)
    machine = MachineConfig(precision=precision, threads=threads)
    common = [*set, f"test_examples={limit}", f"machine.threads={threads}"]
    common += [f'machine.precision="{precision}"']
    found: dict[str, list[Point]] = {}
    for word, each in zip(tasks, located, strict=True):
        name = each.task.name
        points = [
            point
            for arm in arms
            for seed in range(seeds)
            for point in _run_arm(model, word, arm, seed, out / name, data, common, quiet)
        ]
        points += prompt_points(
            model, each.task, shown, limit, path, out / name, prepare_process(machine), quiet=quiet
        )
        found[name] = points
    hardware = describe_hardware()
    record = finetuning_record(model, found, hardware)
    write_json(out / "results.json", record)
    command = command_line("lmsmith study finetune", study_finetune, arguments)
    page = build_finetuning_page(out, model, found, command, hardware)
    return FinetuneStudy(record=record, tasks=found, report=page)


def _count(word: str) -> int:
    """A number of examples; 0 for all."""
    if word == "all":
        return 0
    if not word.isdecimal() or int(word) < 2:
        raise UserError(f"--examples {word}: expected numbers from 2 on, or all", "e.g. 8,32,all")
    return int(word)


def _run_arm(
    model: str,
    task: str,
    arm: Arm,
    seed: int,
    folder: Path,
    data: Path | None,
    common: Sequence[str],
    quiet: bool,
) -> list[Point]:
    """The measurements of one run, which are kept in place of its weights."""
    from lmsmith.studies.finetuning import Point, points_of_run

    settings = [*common, *arm.settings, f"seed={seed}"]
    key = recipe_identity(_recipe(model, task, data, settings))
    kept = folder / "points.jsonl"
    rows: list[dict[str, Any]] = growing_rows(kept)
    for row in rows:
        if row["key"] == key:
            return [Point(**each) for each in row["points"]]
    work = folder / "work" / f"{arm.name.replace(' ', '-')}-{arm.examples}-{seed}"
    run = finetune(model, task, data=data, out=work, set=settings, quiet=quiet)
    stages: Any = run.record["stages"]
    points = points_of_run(arm, seed, stages["finetune"]["metrics"])
    write_jsonl(kept, [*rows, {"key": key, "points": [each.as_dict() for each in points]}])
    shutil.rmtree(work)
    return points
