"""``lmsmith study``: the examples' labels, their order, their number, and what each does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lmsmith.cli.eval_plan import check_seed, shot_counts, split_words
from lmsmith.cli.output import print_json, table_console
from lmsmith.core.errors import UserError
from lmsmith.core.progress import choose_progress
from lmsmith.core.recipe import MachineConfig

if TYPE_CHECKING:
    from lmsmith.report.study.page import Studied
    from lmsmith.studies.in_context import Arm, Found

_List = Annotated[str, tyro.conf.arg(metavar="A,B,…")]
_Folders = Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")]


def study(
    kind: Literal["labels", "order", "shots"],
    models: tyro.conf.Positional[tuple[str, ...]],
    /,
    tasks: _List = "",
    shots: _List = "",
    orders: int = 8,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    data: _Folders = (),
    measure: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    seed: int = 0,
    chat: bool = False,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("evals"),
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Put a task in several ways to the same items, and draw what each way does.

    labels: examples with their right labels, with random ones, with random words, without any,
    with renamed ones; and no examples (Min et al. 2022). order: the same examples in several orders
    (Lu et al. 2021). shots: from none to many, with the task's instruction and without (Brown et
    al. 2020, figure 1.2). Run it again after Ctrl-C or a kill: what is answered is kept.

    Args:
        kind: labels, order or shots.
        models: Runs, model folders, Hugging Face folders, GGUF files or registered names.
        tasks: Names (lmsmith tasks ls), or .toml or .jsonl files of your own.
        shots: Examples before each item; 16 for labels, 4 for order, 0,1,2,4,8,16,32 for shots.
        orders: Of the examples, how many.
        limit: Only so many items of each task, drawn by --seed, the same for all models and ways.
        data: Where tasks' files are; may be given more than once. Also LMSMITH_DATA.
        measure: The headline measure, if not the task's own.
        seed: Of items drawn, examples, labels, orders, generated items and intervals.
        chat: Ask by the model's chat template.
        precision: Of matrix products; auto: bf16 where the processor multiplies it.
        threads: Of one operation; 0 for all cores.
        folder: Items go to FOLDER/MODEL, the page and its figures to FOLDER/study-KIND.
        json: Print one JSON object on standard output, and nothing else there.
        quiet: Show no progress.
    """
    from lmsmith.core.files import write_json
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.report.study.page import build_study_page, study_record
    from lmsmith.training.machine import prepare_process

    _check(models, orders, limit)
    check_seed(seed)
    path = search_path(data)
    machine = prepare_process(MachineConfig(precision=precision, threads=threads))
    plans = _plans(kind, tasks, shots, orders, limit, seed, measure, path)
    place = folder / f"study-{kind}"
    studied: list[Studied] = []
    for model in models:
        studied += _put(model, plans, path, machine, chat, folder, quiet or json)
    record = study_record(kind, studied)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "results.json", record)
    page = build_study_page(place, kind, studied)
    if json:
        print_json(record | {"report": str(page)})
        return 0
    _print(studied)
    print(f"report: {page}")
    return 0


def _check(models: Sequence[str], orders: int, limit: int | None) -> None:
    if not models:
        raise UserError("no models", "e.g. lmsmith study labels smollm2-135m --tasks boolq")
    from lmsmith.evaluation.run import folder_name

    names = [folder_name(model) for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{twice}: named twice", "name each model once")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more", "leave it out for all items")


def _plans(
    kind: Any,
    tasks: str,
    shots: str,
    orders: int,
    limit: int | None,
    seed: int,
    measure: str,
    path: list[Path],
) -> list[list[Arm]]:
    """The arms of each task; everything is checked before a model is read."""
    from lmsmith.evaluation.evaluator import Setting
    from lmsmith.evaluation.run import with_measure
    from lmsmith.evaluation.tasks.data import read_data
    from lmsmith.evaluation.tasks.shipped import find_tasks
    from lmsmith.evaluation.tasks.shown_labels import ShownLabels, has_shared_labels
    from lmsmith.studies.in_context import DEFAULT_SHOTS, plan_arms

    counts = [count for count in shot_counts(shots) if count is not None]
    if "fit" in split_words(shots):
        raise UserError("--shots fit: a study shows as many as it says", "e.g. --shots 4")
    found = find_tasks(split_words(tasks), run_python=True)
    if not found:
        raise UserError("no tasks", "name some: --tasks boolq")
    plans = []
    for task in found:
        if measure:
            task = with_measure(task, measure)
        renames = False
        if kind == "labels":
            pool = read_data(task, path, seed).pool
            ShownLabels(task, pool, "random", seed)  # refuses a task without labels
            renames = has_shared_labels(task, pool)
        setting = Setting(limit=limit, seed=seed)
        wanted = counts or DEFAULT_SHOTS[kind]
        plans.append(plan_arms(kind, task, wanted, orders, setting, renames=renames))
    return plans


def _put(
    model: str,
    plans: list[list[Arm]],
    path: list[Path],
    machine: Any,
    chat: bool,
    folder: Path,
    quiet: bool,
) -> list[Studied]:
    """Every arm of every task to one model."""
    from lmsmith.evaluation.run import PlannedTask, folder_name, model_to_evaluate, run_plan
    from lmsmith.report.study.page import Studied
    from lmsmith.studies.in_context import compare_arms

    place = folder / folder_name(model)
    progress = choose_progress(f"study {model}", quiet)
    planned = [
        [PlannedTask(f"{a.task.name} {a.line} {a.name}", a.task, a.setting) for a in arms]
        for arms in plans
    ]
    labels = [each.label for plan in planned for each in plan]
    with model_to_evaluate(model, place, labels, progress, machine, chat=chat) as read:
        return [
            Studied(
                read.name,
                read.parameters,
                tuple(compare_arms(arms, run_plan(read, plan, path, place, progress))),
            )
            for arms, plan in zip(plans, planned, strict=True)
        ]


def _print(studied: Sequence[Studied]) -> None:
    from rich import box
    from rich.table import Table

    from lmsmith.evaluation.measures import measure_of
    from lmsmith.report.study.page import shown_difference, summary

    console = table_console()
    for each in studied:
        task = each.task
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{each.model}: {task.name}")
        table.title_justify = "left"
        for name in ("", "items", measure_of(task.measure).name, "95 % interval", "against first"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for found in each.found:
            table.add_row(*_cells(found), shown_difference(found))
        console.print(table)
        for line in summary(each):
            print(line)


def _cells(found: Found) -> list[str]:
    from lmsmith.report.evaluation.shown import shown_interval, shown_value

    measure, headline = found.arm.task.measure, found.result.headline
    name = f"{found.arm.name}, {found.arm.line}" if found.arm.line else found.arm.name
    cut = found.result.truncated
    return [
        name + (f" ({cut} cut off)" if cut else ""),
        f"{found.result.items:,}",
        shown_value(measure, headline.value),
        shown_interval(measure, headline),
    ]
