"""``lmsmith report``: a run's page, or its metrics as data."""

from __future__ import annotations

from pathlib import Path

from lmsmith.cli.output import print_json


def report(run: str, *, json: bool = False) -> None:
    """Rebuild the report of a run and print its path, or print all metrics.

    Args:
        run: The run's folder, or its name under runs/.
        json: Print all metrics as one JSON object, and build nothing.
    """
    folder = find_run(run)
    if json:
        from lmsmith.report.run.metrics import collect_metrics

        print_json(collect_metrics(folder))
        return
    from lmsmith.report.run.page import build_report

    print(build_report(folder))


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run given by its path or by its name under ``runs``."""
    named = runs / run
    return named if named.is_dir() and not Path(run).exists() else Path(run)
