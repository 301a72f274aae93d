"""``lmsmith report``: a run's page, or its metrics as data."""

from __future__ import annotations

from pathlib import Path

from lmsmith.cli.output import print_json
from lmsmith.core.errors import UserError


def report(run: str, json: bool = False) -> int:
    """Rebuild the report of a run and print its path, or print all metrics.

    Args:
        run: The run's folder, or its name under runs/.
        json: Print all metrics as one JSON object, and build nothing.
    """
    folder = find_run(run)
    if json:
        from lmsmith.report.metrics import collect_metrics

        print_json(collect_metrics(folder))
        return 0
    from lmsmith.report.page import build_report

    print(build_report(folder))
    return 0


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run given by path or by name.

    Raises:
        UserError: there is no run there.
    """
    for folder in (Path(run), runs / run):
        if (folder / "recipe.json").is_file():
            return folder
    names = sorted(path.parent.name for path in runs.glob("*/recipe.json"))
    mend = f"Runs here: {', '.join(names)}." if names else "Make one: lmsmith run quickstart"
    raise UserError(f"{run}: not a run's folder (it has no recipe.json)", mend)
