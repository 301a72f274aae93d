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
    named = Path("runs") / run
    folder = named if named.is_dir() and not Path(run).exists() else Path(run)
    if json:
        from lmsmith.report.run.metrics import collect_metrics

        print_json(collect_metrics(folder))
    else:
        from lmsmith.report.run.page import build_report

        print(build_report(folder))
