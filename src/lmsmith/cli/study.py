"""``lmsmith study``, ``study scale``, ``finetune``, ``flan`` and ``bert``: what they print."""

from __future__ import annotations

from lmsmith import api, bert_study, finetuning, flan_study
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed


def _show(study: api.Study) -> None:
    from lmsmith.evaluation.measures import measure_of
    from lmsmith.report.evaluation.shown import shown_interval, shown_value
    from lmsmith.report.study.page import difference_from_first, summary

    console = table_console()
    for each in study.tasks:
        measure = measure_of(each.task.measure)
        names = ("", "items", measure.name, "95 % interval", "against first")
        table = plain_table(*names, no_wrap=True, title=f"{each.model}: {each.task.name}")
        for found in each.found:
            arm, result = found.arm, found.result
            name = f"{arm.name}, {arm.line}" if arm.line else arm.name
            table.add_row(
                name + (f" ({result.truncated} cut off)" if result.truncated else ""),
                f"{result.items:,}",
                shown_value(arm.task.measure, result.headline.value),
                shown_interval(arm.task.measure, result.headline),
                difference_from_first(found),
            )
        console.print(table)
        for line in summary(each):
            print(line)
    print(f"report: {study.report}")


study = printed(api.study, _show)


def _show_scale(study: api.ScaleStudy) -> None:
    from lmsmith.report.study.scale_page import law_sentence, rise_row
    from lmsmith.studies.scale.findings import find_rises, predict_losses

    names = ("rises", "task", "from", "accuracy", "to", "accuracy", "intervals apart")
    table = plain_table(*names, left=("task", "from", "to", "intervals apart"))
    for rise in find_rises(study.models):
        table.add_row(*rise_row(rise))
    table_console().print(table)
    for family, prediction in predict_losses(study.models).items():
        print(f"{family}: {law_sentence(family, prediction)}")
    print(f"report: {study.report}")


study_scale = printed(api.study_scale, _show_scale)


def _show_finetuning(study: finetuning.FinetuneStudy) -> None:
    from lmsmith.report.study.finetuning_page import table_rows

    for name, points in study.tasks.items():
        table = plain_table("", name, "examples", "measure", "", left=(name,))
        for row in table_rows(points):
            table.add_row(*row)
        table_console().print(table)
    print(f"report: {study.report}")


study_finetune = printed(finetuning.study_finetune, _show_finetuning)


def _show_flan(study: flan_study.FlanStudy) -> None:
    from lmsmith.report.study.flan_page import COLUMNS, arm_row, before_sentence

    table = plain_table("learnt", *COLUMNS, no_wrap=True)
    for arm in study.arms:
        table.add_row(*arm_row(arm))
    table_console().print(table)
    print(before_sentence(study.record))
    print(f"report: {study.report}")


study_flan = printed(flan_study.study_flan, _show_flan)


def _show_bert(study: bert_study.BertStudy) -> None:
    from lmsmith.report.study.bert_page import accuracy_rows, masked_rows

    names = ("task", "GPT", "BERT", "GPT - BERT, points", "test examples")
    table = plain_table(*names, no_wrap=True)
    for row in accuracy_rows(study.record):
        table.add_row(*row[:-1])
    table_console().print(table)
    for name, value in masked_rows(study.record):
        print(f"hidden tokens named by {name}: {value}")
    print(f"report: {study.report}")


study_bert = printed(bert_study.study_bert, _show_bert)
