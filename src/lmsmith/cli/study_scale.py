"""``lmsmith study scale``: what emerges with shots, with size and with a chain of thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lmsmith.cli.output import print_json, table_console
from lmsmith.core.errors import UserError
from lmsmith.core.progress import choose_progress
from lmsmith.core.recipe import MachineConfig

_Sizes = Annotated[str, tyro.conf.arg(metavar="LxW,LxW,…")]
_Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]


def study_scale(
    *,
    sizes: _Sizes = "",
    minutes: float = 20.0,
    steps: int = 0,
    rows: int = 16,
    items: int = 400,
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
    compile: Literal["auto", "on", "off"] = "auto",
    out: _Folder = Path("evals/study-scale"),
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train a family of tiny models on generated documents, and draw what grows with what.

    Accuracy with 0 to 16 examples on noisy copies of a hidden word and on hidden rules, "remove
    symbols" among them (Brown et al. 2020, figure 1.2); sums of 1 to 4 digits answered directly
    and by a chain of thought (Wei et al. 2022); and the loss of the largest model foretold from
    the smaller ones by L(C) = a C^b + c (OpenAI 2023, section 3). It needs no data and no network.
    Run it again after Ctrl-C or a kill: it goes on.

    Args:
        sizes: Layers x width of each model; 1x32,2x32,2x64,3x96,4x128 if not given.
        minutes: About how long all of it may take; the steps follow from this machine's speed.
        steps: Updates of each model, in place of the minutes; the same on every machine.
        rows: Rows of 208 tokens in a batch.
        items: Documents or questions of each kind that a model is measured on.
        seed: Of weights, documents and questions.
        precision: Of matrix products; auto: bf16 where the processor multiplies it.
        threads: Of one operation; 0 for all cores.
        compile: Whether blocks are compiled; auto: where it pays.
        out: The models, results.json and report.html go here.
        json: Print one JSON object on standard output, and nothing else there.
        quiet: Show no progress.
    """
    _check(minutes, steps, rows, items)
    from lmsmith.core.files import write_json
    from lmsmith.report.study.scale_page import build_scale_page, scale_record
    from lmsmith.runs.locking import locked
    from lmsmith.runs.signals import StopSignal
    from lmsmith.studies.scale.documents import byte_tokenizer
    from lmsmith.studies.scale.family import DEFAULT_SIZES, read_sizes
    from lmsmith.studies.scale.running import ScalePlan, run_study, settle_plan
    from lmsmith.training.machine import prepare_process

    family = read_sizes(sizes or DEFAULT_SIZES, byte_tokenizer().vocabulary_size)
    settings = MachineConfig(precision=precision, threads=threads, compile=compile)
    machine = prepare_process(settings)
    progress = choose_progress("study scale", quiet or json)
    wanted = ScalePlan(family, steps, rows, items, seed, machine.precision)
    with StopSignal(), locked(out, progress):
        try:
            plan = settle_plan(out, wanted, minutes, machine, progress)
            models = run_study(out, plan, machine, settings, progress)
        finally:
            progress.close()
    record = scale_record(plan, models)
    write_json(out / "results.json", record)
    page = build_scale_page(out, plan, models)
    if json:
        print_json(record | {"report": str(page)})
        return 0
    _print(models)
    print(f"report: {page}")
    return 0


def _check(minutes: float, steps: int, rows: int, items: int) -> None:
    if not 0 < minutes <= 7 * 24 * 60:
        raise UserError(f"--minutes {minutes:g}: must be above 0", "e.g. --minutes 20")
    if steps < 0:
        raise UserError(f"--steps {steps}: must not be negative", "0 follows from --minutes")
    if rows < 10:
        raise UserError(f"--rows {rows}: must be 10 or more", "each family has a share of them")
    if items < 10:
        raise UserError(f"--items {items}: must be 10 or more", "fewer tell nothing")


def _print(models: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from lmsmith.report.study.scale_page import law_sentence, rise_row
    from lmsmith.studies.scale.findings import find_rises, predict_losses

    console = table_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("rises", "task", "from", "accuracy", "to", "accuracy", "intervals apart"):
        table.add_column(name, justify="right" if name == "accuracy" else "left")
    for rise in find_rises(models):
        row = rise_row(rise)
        names = ("what", "task", "low", "before", "high", "after", "clear")
        table.add_row(*(row[name] for name in names))
    console.print(table)
    for family, prediction in predict_losses(models).items():
        print(f"{family}: {law_sentence(family, prediction)}")
