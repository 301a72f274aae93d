"""``lmsmith finetune``: what it prints."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from lmsmith.catalogue.reading import read_card
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.finetuning import finetune as finetune_model

if TYPE_CHECKING:
    from lmsmith.api import RunResult

RULES = {"majority": "the commonest label", "bag_of_words": "regression over words"}


def _show(result: RunResult) -> None:
    stages: Any = result.record["stages"]
    metrics: dict[str, float] = stages["finetune"]["metrics"] or {}
    part = "test" if metrics.get("test_examples") else "validation"
    count = int(metrics[f"{part}_examples"])
    rows = {part: "fine-tuned", **RULES}
    measures = [
        name.removeprefix(f"{part}_").removesuffix("_low")
        for name in metrics
        if name.startswith(f"{part}_") and name.endswith("_low")
    ]
    table = plain_table(f"{count:,} {part} examples", *measures)
    for prefix, title in rows.items():
        cells = [_cell(metrics, f"{prefix}_{measure}") for measure in measures]
        if any(cells):
            table.add_row(title, *cells)
    table_console().print(table)
    named = shlex.quote(str(result.folder))
    print(f"report: {result.report}")
    print(f"model: {result.folder / 'finetune' / 'model'}")
    task = str(read_card(result.folder / "finetune" / "model")["task"])
    print(f"use it: lmsmith tasks run {shlex.quote(task)} {named} < texts.jsonl")


def _cell(metrics: dict[str, float], name: str) -> str:
    """A figure and its interval, in hundredths."""
    if name not in metrics:
        return ""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return f"{100 * metrics[name]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


finetune = printed(finetune_model, _show)
