"""Python function of ``lmsmith finetune``: a classifier from a model and labelled examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmsmith.api import RunResult
from lmsmith.core.progress import QuietProgress, choose_progress
from lmsmith.options import documented


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
    from lmsmith.stages.pipeline import load_stage_recipe, run_recipe

    given = {"base.model": model, "finetune.task": task}
    given |= {"finetune.data": str(data)} if data else {}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    recipe = load_stage_recipe("finetune", [*overrides, *map(_placed, set)])
    recipe = replace(recipe, name=f"finetune-{Path(task).stem}")
    place = out or Path("runs") / recipe.name
    progress = choose_progress(f"{recipe.name}: {model}", quiet)
    record = run_recipe(recipe, place, progress=progress)
    if isinstance(progress, QuietProgress):
        for text in progress.said:
            print(text, file=sys.stderr)
    from lmsmith.report.run.page import build_report

    return RunResult(folder=place, record=record, report=build_report(place))


_TABLES = ("seed", "description", "machine.", "base.", "finetune.")


def _placed(setting: str) -> str:
    """A setting of the stage without the stage's name, with it."""
    return setting if setting.startswith(_TABLES) else f"finetune.{setting}"
