"""``lmsmith offsite``: what its commands print."""

from __future__ import annotations

import shlex

from lmsmith import api, offsite, offsite_study
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed


def _show_emulator(result: api.RunResult) -> None:
    _show_run(result)
    model = result.folder / "emulator" / "model"
    print(f"emulator: {model}")
    print(f"send it, and have it tuned: lmsmith offsite tune {shlex.quote(str(model))} TASK")


def _show_tuned(result: api.RunResult) -> None:
    _show_run(result)
    adapters = result.folder / "offsite" / "adapters"
    print(f"adapters: {adapters}")
    print(f"send them back: lmsmith offsite plug MODEL {shlex.quote(str(adapters))}")


def _show_run(result: api.RunResult) -> None:
    from lmsmith.cli.run import gains_table
    from lmsmith.report.run.gains import describe_gains
    from lmsmith.report.run.metrics import stage_tables
    from lmsmith.report.run.records import read_run

    read = read_run(result.folder)
    gains = describe_gains(read, stage_tables(read))
    table_console().print(gains_table([gain for gain in gains if gain.status != "not run"]))
    print(f"report: {result.report}")


def _show_plugged(result: offsite.PluggedModel) -> None:
    record = result.record
    print(
        f"{record['adapter_parameters']:,} of {record['parameters']:,} parameters are the tuned "
        f"adapters': {record['adapter_layers']} layers at each end of {record['layers']}"
    )
    print(f"model: {result.folder}")
    print(f"next: lmsmith chat {shlex.quote(str(result.folder))}")


def _show_comparison(result: offsite_study.OffsiteComparison) -> None:
    from lmsmith.report.study.offsite_page import COLUMNS, order_sentence, table_rows

    for each in result.tasks:
        table = plain_table(each["task"], *COLUMNS, no_wrap=True)
        for row in table_rows(each):
            table.add_row(*row)
        table_console().print(table)
        print(order_sentence(each))
    print(f"report: {result.report}")


emulator = printed(offsite.offsite_emulator, _show_emulator)
tune = printed(offsite.offsite_tune, _show_tuned)
plug = printed(offsite.offsite_plug, _show_plugged)
compare = printed(offsite_study.offsite_compare, _show_comparison)
