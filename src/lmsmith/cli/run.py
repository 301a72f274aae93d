"""``lmsmith run`` and ``lmsmith report``: a recipe from its first stage to its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith import api
from lmsmith.cli.output import plain_table, print_json, table_console
from lmsmith.cli.parsing import printed
from lmsmith.corpus.finished import CORPUS_FILE

if TYPE_CHECKING:
    from rich.table import Table

    from lmsmith.report.run.gains import Gain

_STYLES = {"better": "green", "unclear": "yellow", "worse": "red", "": ""}


def _show(result: api.RunResult, *, quiet: bool) -> None:
    if result.report is None:
        print(plan_text(result.record))
        return
    from lmsmith.catalogue.resolve import TRANSLATING_STAGE, WRITING_STAGES

    folder = result.folder
    if not quiet:
        from lmsmith.report.run.gains import describe_gains
        from lmsmith.report.run.metrics import stage_tables
        from lmsmith.report.run.records import read_run

        read = read_run(folder)
        gains = describe_gains(read, stage_tables(read))
        table_console().print(gains_table([gain for gain in gains if gain.status != "not run"]))
    print(f"report: {result.report}")
    if not quiet and any((folder / stage / "model").exists() for stage in WRITING_STAGES):
        named = shlex.quote(str(folder))
        print(f"next: lmsmith chat {named}; or its chat page: lmsmith serve {named}")
    elif not quiet and (folder / TRANSLATING_STAGE / "model").exists():
        print(f'next: lmsmith translate {shlex.quote(str(folder))} "A sentence."')


run = printed(api.run, _show, quiet_json=False)


def plan_text(result: dict[str, object]) -> str:
    """A dry run's result, a line a stage."""
    stages = result["stages"]
    assert isinstance(stages, dict)
    width = max(len(name) for name in stages)
    return "\n".join(
        f"{entry['action']:<8}  {name:<{width}}  {entry['reason']}"
        for name, entry in stages.items()
    )


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


def report(run: str, *, json: bool = False) -> None:
    """Rebuild the report of a run or a corpus and print its path, or print all metrics.

    Args:
        run: The run's folder, its name under runs/, or the folder of a finished corpus.
        json: Print all metrics as one JSON object, and build nothing.
    """
    named = Path("runs") / run
    folder = named if named.is_dir() and not Path(run).exists() else Path(run)
    if (folder / CORPUS_FILE).is_file():
        from lmsmith.corpus.finished import FinishedCorpus
        from lmsmith.report.corpus.page import build_corpus_page

        if json:
            print_json(FinishedCorpus.load(folder).record)
        else:
            print(build_corpus_page(folder))
    elif json:
        from lmsmith.report.run.metrics import collect_metrics

        print_json(collect_metrics(folder))
    else:
        from lmsmith.report.run.page import build_report

        print(build_report(folder))
