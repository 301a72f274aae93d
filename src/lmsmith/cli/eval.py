"""``lmsmith eval`` and ``lmsmith compare``: what they print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmsmith import api
from lmsmith.cli.output import table_console
from lmsmith.cli.parsing import printed

if TYPE_CHECKING:
    from lmsmith.evaluation.run import Evaluation


def _show(found: Evaluation) -> None:
    from lmsmith.cli.eval_tables import harness_table, print_tables

    if "lm_eval" in found.record:
        record = found.record
        table_console().print(harness_table(record["results"]))
        if record["limit"]:
            print(f"of each task the first {record['limit']} items, as lm-eval takes them")
        print(f"items: {record['folder']}")
        return
    print_tables([found])
    print(f"report: {found.report}")


evaluate = printed(api.evaluate, _show)


def _show_comparison(found: api.ModelComparison) -> None:
    from lmsmith.cli.eval_tables import print_tables
    from lmsmith.report.evaluation.versus import versus_sentences

    print_tables(found.evaluations, found.pairs)
    judged = [pair.versus for pair in found.pairs if pair.versus is not None]
    for versus in judged:
        for sentence in versus_sentences(versus):
            print(f"win rate: {sentence}")
    print(f"report: {found.report}")
    if any(versus.people and versus.people.waiting for versus in judged):
        from lmsmith.cli.feedback import next_step

        print(f"{next_step(found.database)}. Then this command again")


compare = printed(api.compare, _show_comparison)
