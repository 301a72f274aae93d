"""``lmsmith offsite compare``: tuning on an emulator beside tuning the model itself."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api import Recorded, run_loaded, stage_recipe
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, read_jsonl, write_json
from lmsmith.core.progress import choose_progress
from lmsmith.core.version import VERSION
from lmsmith.offsite import emulator_recipe
from lmsmith.options import command_line, documented
from lmsmith.runs.identity import recipe_identity
from lmsmith.runs.records import read_record, write_record

if TYPE_CHECKING:
    from lmsmith.core.recipe import Recipe

ARMS = ("full", "plugged", "emulator", "zero_shot", "emulator_zero_shot")
"""What is measured."""

ORDER = ("full", "plugged", "emulator", "zero_shot")
"""The order that the paper finds, the best first."""


@dataclass(frozen=True, kw_only=True)
class OffsiteComparison(Recorded):
    """Offsite-tuning beside other ways, each task's figures in the order asked."""

    tasks: list[dict[str, Any]]


@documented
def offsite_compare(
    model: str,
    task: Sequence[str],
    *,
    adapter_layers: int = 2,
    keep: int = 8,
    distil: Sequence[str] = (),
    full_learning_rate: float = 2e-5,
    data: Path | None = None,
    set: Sequence[str] = (),
    keep_models: bool = False,
    out: Path = Path("evals/offsite"),
    quiet: bool = False,
) -> OffsiteComparison:
    """Compare offsite-tuning with fine-tuning the whole model, the emulator alone, and no tuning.

    One emulator is made, and for each task its adapters are tuned and put into the full model; the
    full model is fine-tuned on the same examples. All answer the same test items (Xiao et al.
    2023, table 1). Run it again after Ctrl-C or a kill: what is done is kept.

    Args:
        task: Tasks with answers to choose from, as for offsite tune.
        adapter_layers: Layers of each adapter.
        keep: Layers of those between the adapters that the emulator keeps, evenly spaced.
        distil: Text (.txt, .jsonl, a folder) on which the emulator is distilled; may be given more
            than once.
        full_learning_rate: Learning rate of the full fine-tuning; that of the adapters is
            offsite.sft.optimiser.learning_rate.
        data: Where the tasks' files are; also LMSMITH_DATA.
        set: Change a setting of all runs, e.g. offsite.sft.epochs=5, emulator.tokens=200000,
            seed=3, machine.threads=1.
        keep_models: Keep the fully fine-tuned models; only measurements are kept otherwise.
        out: The runs, results.json and report.html go here.

    Raises:
        UserError: no such model or task, or a task without answers to choose from.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.offsite_compare("smollm2-135m", ["sst2", "cb"]).tasks       # doctest: +SKIP
    """
    arguments = dict(locals())
    from lmsmith.report.study.offsite_page import build_offsite_page
    from lmsmith.runs.stage_folder import describe_hardware

    owner = emulator_recipe(model, adapter_layers, keep, distil, _of_stage(set, "emulator"))
    settings, place = _of_stage(set, "offsite"), out / "emulator"
    common = {"data": str(data) if data else "", "part": "all", "model": model}
    rate = f"sft.optimiser.learning_rate={full_learning_rate}"
    full = {
        word: stage_recipe("full", "offsite", {**common, "task": word}, [*settings, rate])
        for word in _checked(task)
    }
    made = run_loaded(owner, place, f"emulator of {model}", quiet=quiet)
    of_emulator: Any = made.record["stages"]
    found = []
    for word, recipe in full.items():
        given = {**common, "part": "adapters", "model": str(place), "task": word}
        tuned = stage_recipe("tuned", "offsite", given, settings)
        plan = TaskPlan(word, tuned, recipe, out / Path(word).stem)
        found.append(_compare_task(model, plan, keep_models=keep_models, quiet=quiet))
    record = {
        "comparison": "offsite",
        "version": VERSION,
        "model": model,
        "command": command_line("lmsmith offsite compare", offsite_compare, arguments),
        "hardware": describe_hardware(),
        "emulator": of_emulator["emulator"]["metrics"],
        "tasks": found,
    }
    write_json(out / "results.json", record)
    return OffsiteComparison(record=record, tasks=found, report=build_offsite_page(out, record))


def _of_stage(settings: Sequence[str], stage: str) -> list[str]:
    """The settings that are of this stage or of the whole recipe.

    Raises:
        UserError: one is of neither stage.
    """
    whole = ("seed", "machine.")
    for each in settings:
        if not each.startswith((*whole, "emulator.", "offsite.")):
            fix = "begin it with emulator. or offsite., or set seed or machine.…"
            raise UserError(f"--set {each}: of which stage?", fix)
    return [each for each in settings if each.startswith((*whole, f"{stage}."))]


@dataclass(frozen=True)
class TaskPlan:
    """A task, the recipes of its two trainings, and its folder."""

    task: str
    tuned: Recipe
    full: Recipe
    folder: Path


def _checked(tasks: Sequence[str]) -> list[str]:
    from lmsmith.stages.instruction_rows import is_task_file

    if not tasks:
        raise UserError("no tasks", "name one or more: lmsmith offsite compare MODEL sst2 cb")
    for task in tasks:
        if not is_task_file(task):
            fix = "name a task, or a .toml file of one"
            raise UserError(f"{task}: conversations have no answers to choose from", fix)
    twice = [
        stem for stem, count in Counter(Path(task).stem for task in tasks).items() if count > 1
    ]
    if twice:
        raise UserError(f"{twice[0]}: two tasks of that name", "rename one of the files")
    return list(tasks)


def _compare_task(model: str, plan: TaskPlan, *, keep_models: bool, quiet: bool) -> dict[str, Any]:
    """The figures of a task; those that are measured already are read."""
    identity = fingerprint([recipe_identity(plan.tuned), recipe_identity(plan.full)])
    kept = read_record(plan.folder / "measured.json")
    if kept is not None and kept.get("identity") == identity:
        found: dict[str, Any] = kept["found"]
        return found
    stages, scores = {}, {}
    for name, recipe in (("tuned", plan.tuned), ("full", plan.full)):
        place = plan.folder / name
        result = run_loaded(recipe, place, f"{plan.task}, {name}", quiet=quiet)
        of_run: Any = result.record["stages"]
        stages[name] = of_run["offsite"]
        scores[name] = _scores(place)
    plugged, test = _plugged_scores(model, plan, quiet=quiet)
    by_arm = {
        "full": scores["full"]["after"],
        "plugged": plugged,
        "emulator": scores["tuned"]["after"],
        "zero_shot": scores["full"]["before"],
        "emulator_zero_shot": scores["tuned"]["before"],
    }
    found = {"task": plan.task, **task_figures(by_arm), **_guessing(test)}
    found["train_examples"] = int(stages["tuned"]["metrics"]["train_examples"])
    found["seconds"] = {name: stage["wall_seconds"] for name, stage in stages.items()}
    found["trained_parameters"] = {
        name: int(stage["metrics"]["trained_parameters"]) for name, stage in stages.items()
    }
    write_record(plan.folder / "measured.json", {"identity": identity, "found": found})
    if not keep_models:
        shutil.rmtree(plan.folder / "full")
    return found


def _scores(place: Path) -> dict[str, list[float]]:
    from lmsmith.stages.offsite import SCORES

    found: Any = read_json(place / "offsite" / SCORES)
    return {name: [float(each) for each in values] for name, values in found.items()}


def _plugged_scores(model: str, plan: TaskPlan, *, quiet: bool) -> tuple[list[float], Path]:
    """1 for each test item that the full model with the adapters answers rightly, else 0; and the
    items' file."""
    from lmsmith.catalogue.reading import read_model
    from lmsmith.catalogue.resolve import Source
    from lmsmith.evaluation.run import stage as announced
    from lmsmith.models.offsite import plug
    from lmsmith.runs.locking import locked
    from lmsmith.runs.signals import StopSignal
    from lmsmith.runs.stage_folder import StageFolder, derive_seed
    from lmsmith.stages.offsite import answers, write_data
    from lmsmith.training.machine import prepare_process

    config: Any = plan.tuned.stages["offsite"]
    place, adapters = plan.folder / "plugged", plan.folder / "tuned" / "offsite" / "adapters"
    place.mkdir(parents=True, exist_ok=True)
    progress = choose_progress(f"{plan.task}, plugged", quiet)
    label = f"{plan.task}: plug-in"
    with StopSignal(), locked(place, progress), contextlib.closing(progress):
        progress.plan([label])
        with announced(progress, label):
            machine = prepare_process(plan.tuned.machine)
            seed = derive_seed(plan.tuned.seed, "offsite")
            out = StageFolder(place, seed, plan.tuned.machine, progress)
            write_data(config, place, out)
            read = read_model(model)
            plug(read.decoder, adapters)
            # Rows of items are kept for these adapters: their folder stands for the model's.
            read = replace(read, source=Source("lmsmith", adapters, "plugged"))
            test = place / "test.jsonl"
            found = answers(read, test, place / "items", machine, out, chat=True)
    return found, test


def task_figures(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Accuracy of each arm, and the paired differences along the paper's order, with intervals.

    Args:
        scores: arm → 1 for each item answered rightly, else 0, item by item the same.
    """
    from lmsmith.statistics.intervals import bootstrap_ratio

    def difference(better: str, worse: str) -> dict[str, float]:
        pairs = zip(scores[better], scores[worse], strict=True)
        return vars(bootstrap_ratio([left - right for left, right in pairs]))

    return {
        "items": len(scores["full"]),
        "arms": {name: vars(bootstrap_ratio(scores[name])) for name in ARMS},
        "differences": [
            {"better": better, "worse": worse, **difference(better, worse)}
            for better, worse in (*pairwise(ORDER), ("plugged", "zero_shot"))
        ],
    }


def _guessing(test: Path) -> dict[str, float]:
    """Accuracy of guessing, and of the commonest place of the right answer."""
    rows: list[Any] = [row for _, row in read_jsonl(test)]
    commonest = max(Counter(row["gold"] for row in rows).values())
    return {
        "chance": sum(1 / len(row["choices"]) for row in rows) / len(rows),
        "commonest": commonest / len(rows),
    }
