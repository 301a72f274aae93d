"""All metrics of a run as one nested object: what ``lmsmith report RUN --json`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmsmith.report.numbers import as_number
from lmsmith.report.run.records import RunRecord, read_run


def collect_metrics(run_folder: Path) -> dict[str, Any]:
    """Collect every metric of the run in ``run_folder``, finished or not.

    Returns:
        ``{"run", "recipe", "status": {stage: "done" | "outdated" | "started" | "not run"},
        "wall_seconds": {stage: seconds, "total": seconds}, "versions", "hardware"}`` and one
        table a stage: its own metrics, ``wall_seconds``, ``peak_memory_bytes``, and what the
        evaluate stage measured of it on the test split (``ppo.win_rate`` of evaluate is
        ``["ppo"]["win_rate"]`` here). Where a stage's own metric has the same name as one of
        evaluate's, evaluate's counts. Numbers that are not finite are None, as JSON needs.

    Raises:
        UserError: ``run_folder`` is not a run folder.
    """
    run = read_run(run_folder)
    seconds = {stage.name: stage.wall_seconds for stage in run.stages.values()}
    known = {name: value for name, value in seconds.items() if value is not None}
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "status": {stage.name: stage.status for stage in run.planned},
        **stage_tables(run),
        "wall_seconds": {**known, "total": sum(known.values())},
        "versions": run.versions,
        "hardware": run.hardware,
    }


def stage_tables(run: RunRecord) -> dict[str, dict[str, float | None]]:
    """The metrics by stage; evaluate's stand under the stage that they measure."""
    tables: dict[str, dict[str, float | None]] = {}
    for stage in run.stages.values():
        if stage.status == "not run":
            continue
        own = {} if stage.name == "evaluate" else stage.metrics
        tables[stage.name] = {name: as_number(value) for name, value in own.items()}
        for name in ("wall_seconds", "peak_memory_bytes"):
            if getattr(stage, name) is not None:
                tables[stage.name][name] = getattr(stage, name)
    for name, value in run.stages["evaluate"].metrics.items():
        table, _, metric = name.partition(".") if "." in name else ("evaluate", "", name)
        tables.setdefault(table, {})[metric] = as_number(value)
    return tables
