"""The closing table of a run: what each stage gained over the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmsmith.cli.output import table_console
from lmsmith.report.numbers import duration
from lmsmith.report.run.gains import VERDICT_WORDS, Gain, describe_gains
from lmsmith.report.run.metrics import stage_tables
from lmsmith.report.run.records import read_run

_STYLES = {"better": "green", "unclear": "yellow", "worse": "red", "": ""}


def print_closing_table(folder: Path, console: Console | None = None) -> None:
    """Print what each stage of the run in ``folder`` gained, with its wall time."""
    run = read_run(folder)
    console = console or table_console()
    gains = describe_gains(run, stage_tables(run))
    console.print(closing_table([gain for gain in gains if gain.status != "not run"]))


def closing_table(gains: Sequence[Gain]) -> Table:
    """A row a stage: the measure, before → after, the note with the interval, the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "measured by", "before", "after", ""):
        table.add_column(name, justify="right" if name in ("before", "after") else "left")
    table.add_column("time", justify="right", no_wrap=True)
    for gain in gains:
        verdict = VERDICT_WORDS[gain.verdict]
        note = "; ".join(text for text in (gain.note, verdict) if text)
        after = Text(gain.after, style=_STYLES[gain.verdict])
        time = duration(gain.wall_seconds) if gain.wall_seconds is not None else gain.status
        table.add_row(gain.stage, gain.measure, gain.before, after, Text(note), time)
    return table
