"""``lmsmith run``: a recipe from its first stage to its report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from lmsmith.cli.output import choose_progress, print_json
from lmsmith.core.progress import QuietProgress
from lmsmith.stages import load_stage_recipe
from lmsmith.stages.pipeline import run_recipe

_Overrides = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="STAGE.KEY=VALUE")
]


def run(
    recipe: str,
    set: _Overrides = (),
    only: Annotated[str | None, tyro.conf.arg(metavar="STAGE")] = None,
    dry_run: bool = False,
    folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Run a recipe's stages, then build the run's report.

    Run it again after anything (Ctrl-C, kill, a full disk): what is done is skipped, and what
    was cut off continues. A changed setting reruns its stage and those below it.

    Args:
        recipe: A shipped recipe (lmsmith recipes ls) or a .toml file; paths in it are relative to
            that file.
        set: Change a setting, e.g. ppo.kl_coefficient=0.05; a path is as one in the recipe.
        only: Run just this stage; its inputs must be done.
        dry_run: Say what would run, and why, and run nothing.
        folder: The run's folder; runs/NAME by default.
        json: Print one JSON object on standard output, and nothing else there.
        quiet: Show no progress, only warnings.
    """
    loaded = load_stage_recipe(recipe, set)
    place = folder or Path("runs") / loaded.name
    if dry_run:
        result = run_recipe(loaded, place, only, dry_run=True)
        print_json(result) if json else print(plan_text(result))
        return 0
    progress = choose_progress(f"{loaded.name}: {loaded.description}".removesuffix(": "), quiet)
    result = run_recipe(loaded, place, only, progress=progress)
    if isinstance(progress, QuietProgress):
        for text in progress.said:
            print(text, file=sys.stderr)
    from lmsmith.report.run.page import build_report

    page = build_report(place)
    if json:
        print_json({**result, "report": str(page)})
        return 0
    if not quiet:
        from lmsmith.cli.closing import print_closing_table

        print_closing_table(place)
    print(f"report: {page}")
    from lmsmith.catalogue.resolve import WRITING_STAGES

    if not quiet and any((place / stage / "model").exists() for stage in WRITING_STAGES):
        named = shlex.quote(str(place))
        print(f"next: lmsmith chat {named}; or its chat page: lmsmith serve {named}")
    return 0


def plan_text(result: dict[str, object]) -> str:
    """A dry run's result, a line a stage."""
    stages = result["stages"]
    assert isinstance(stages, dict)
    width = max(len(name) for name in stages)
    return "\n".join(
        f"{entry['action']:<8}  {name:<{width}}  {entry['reason']}"
        for name, entry in stages.items()
    )
