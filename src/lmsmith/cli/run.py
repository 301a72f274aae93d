"""``lmsmith run``: a recipe from its first stage to its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.cli.output import plain_table, print_json, table_console
from lmsmith.core.progress import QuietProgress, choose_progress
from lmsmith.stages import load_stage_recipe
from lmsmith.stages.pipeline import run_recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lmsmith.report.run.gains import Gain

_STYLES = {"better": "green", "unclear": "yellow", "worse": "red", "": ""}


def run(
    recipe: str,
    set: tuple[str, ...] = (),
    only: str | None = None,
    dry_run: bool = False,
    folder: Path | None = None,
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
        print_gains(place)
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


def print_gains(folder: Path, console: Console | None = None) -> None:
    """Print what each stage of the run in ``folder`` gained, with its wall time."""
    from lmsmith.report.run.gains import describe_gains
    from lmsmith.report.run.metrics import stage_tables
    from lmsmith.report.run.records import read_run

    run = read_run(folder)
    gains = describe_gains(run, stage_tables(run))
    console = console or table_console()
    console.print(gains_table([gain for gain in gains if gain.status != "not run"]))


def gains_table(gains: Sequence[Gain]) -> Table:
    """A row a stage: the measure, before → after, the note with the interval, the verdict."""
    from rich.text import Text

    from lmsmith.core.format import format_duration
    from lmsmith.report.run.gains import VERDICT_WORDS

    table = plain_table("stage", "measured by", "before", "after", "", left=("measured by", ""))
    table.add_column("time", justify="right", no_wrap=True)
    for gain in gains:
        verdict = VERDICT_WORDS[gain.verdict]
        note = "; ".join(text for text in (gain.note, verdict) if text)
        after = Text(gain.after, style=_STYLES[gain.verdict])
        time = format_duration(gain.wall_seconds) if gain.wall_seconds is not None else gain.status
        table.add_row(gain.stage, gain.measure, gain.before, after, Text(note), time)
    return table
