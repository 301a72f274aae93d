"""``lmsmith eval``: how good a model is, on tasks of papers or of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmsmith.cli.eval_plan import (
    check_seed,
    models_to_measure,
    places_of,
    shot_counts,
    split_words,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import missing
from lmsmith.core.recipe import MachineConfig

_List = Annotated[str, tyro.conf.arg(metavar="A,B,…")]
_Folders = Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")]


def evaluate(
    model: str,
    tasks: _List = "",
    suite: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    shots: _List = "",
    fixed_shots: bool = False,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    data: _Folders = (),
    measure: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    seed: int = 0,
    chat: bool = False,
    start_of_text: Literal["auto", "always", "never"] = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
    contamination: Annotated[
        tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")
    ] = (),
    classifier: Annotated[str, tyro.conf.arg(metavar="TASK=LABEL")] = "",
    judge: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "",
    compare: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")
    ] = (),
    stages: bool = False,
    win_rate: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    reply_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    greedy: bool = False,
    labelers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    database: Annotated[str, tyro.conf.arg(metavar="FILE")] = "",
    harness: Literal["own", "lm-eval"] = "own",
    include_path: _Folders = (),
    folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a model on tasks: a table with intervals, every item's answer, and a page.

    Run it again after anything (Ctrl-C, kill): items that are answered are not asked again, and
    a higher --limit asks only what is new.

    Args:
        model: A run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        tasks: Names (lmsmith tasks ls), or .toml, .jsonl, .txt or .py files of your own; of a
            .py file every task, or one: my_task.py:MyTask, my_module:MyTask.
        suite: Tasks that go together: gpt2, gpt3, chat or safety.
        shots: Examples before each item, e.g. 0,1,4; fit for as many as the context holds. By
            default what the task says.
        fixed_shots: The same examples for all items; else drawn for each.
        limit: Only so many items of each task, drawn by --seed, the same for every model and number
            of shots. With --harness lm-eval the first ones, as lm-eval takes them.
        data: Where tasks' files are; may be given more than once. Also LMSMITH_DATA.
        measure: The headline measure, if not the task's own.
        seed: Of items drawn, examples, generated items, sampling and intervals.
        chat: Ask by the model's chat template.
        start_of_text: Whether texts begin with that token; auto: as the tokenizer does.
        precision: Of matrix products; auto: bf16 where the processor multiplies it.
        threads: Of one operation; 0 for all cores.
        contamination: Text that a model was trained on (.txt, .jsonl): the score without items
            that overlap with it; may be given more than once.
        classifier: What scores toxicity in the patterns' place: a task of your own (lmsmith task
            add) and its label for what is toxic.
        judge: The model that grades, classifies and judges; by default the one that is measured.
            For a win rate also people: labelers, by the pages of lmsmith serve.
        compare: Another model, asked the same items: what the first gains over it. May be given
            more than once.
        stages: Of a run: measure its pretrained, SFT and PPO models, and what each changed.
        win_rate: Instructions (.jsonl) to which all models reply as in lmsmith chat; --judge says
            whose reply is better: a reward model's folder, any model that writes, shown both
            orders, or people.
        reply_tokens: Longest reply to an instruction.
        greedy: Reply by the likeliest token each time, not as lmsmith chat draws.
        labelers: How many people are to judge each pair.
        database: The labelers': a file, or a URL; the server's if it is left out.
        harness: Whose tasks: those of lmsmith tasks ls, or lm-evaluation-harness's, by its names
            (arc_easy), prompts and measures; extra: pip install "lmsmith[harness]".
        include_path: lm-eval's: a folder of YAML tasks of your own; may be given more than once.
        folder: Where results go; evals/MODEL by default, evals/MODEL/lm-eval for lm-eval's.
        json: Print one JSON object on standard output, and nothing else there.
        quiet: Show no progress.
    """
    from lmsmith.cli.eval_run import Run
    from lmsmith.cli.eval_table import compared, report
    from lmsmith.cli.eval_versus import PEOPLE, Instructions
    from lmsmith.core.files import write_json
    from lmsmith.evaluation.contamination import add_contamination, check_corpora
    from lmsmith.evaluation.evaluator import Setting
    from lmsmith.evaluation.run import Plan, plan_tasks, with_raters
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.training.machine import prepare_process

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more", "leave it out for all items")
    if labelers < 1:
        raise UserError(f"--labelers {labelers}: must be 1 or more", "e.g. --labelers 3")
    check_seed(seed)
    absent = next((file for file in contamination if not file.is_file()), None)
    if absent is not None:
        raise UserError(f"--contamination {missing(absent)}", "name a .txt or .jsonl file")
    check_corpora(contamination)
    begins = {"auto": None, "always": True, "never": False}[start_of_text]
    if include_path and harness == "own":
        raise UserError("--include-path: for lm-eval's tasks", "add --harness lm-eval")
    if harness == "lm-eval":
        from lmsmith.cli.harness import HarnessRun, report_harness

        own = {"--suite": suite, "--fixed-shots": fixed_shots, "--data": data}
        own |= {"--measure": measure, "--contamination": contamination, "--judge": judge}
        own |= {"--classifier": classifier, "--compare": compare, "--stages": stages}
        own |= {"--win-rate": win_rate, "--greedy": greedy, "--database": database}
        given = [name for name, value in own.items() if value]
        if given:
            problem = f"{', '.join(given)}: not for --harness lm-eval"
            raise UserError(problem, "leave it out, or measure with lmsmith's own tasks")
        asked = HarnessRun(
            model, tasks, shots, limit, seed, chat, begins, precision, threads, include_path,
            folder, quiet or json,
        )  # fmt: skip
        report_harness(asked.measure(), json=json)
        return 0
    models, pairs = models_to_measure(model, compare, stages)
    if win_rate and not (pairs and judge):
        raise UserError(
            f"--win-rate {win_rate}: needs a second model and a judge",
            "name both: --compare MODEL --judge MODEL",
        )
    plan: Plan = []
    if tasks or suite or not win_rate:
        setting = Setting(fixed=fixed_shots, limit=limit, seed=seed)
        plan = plan_tasks(split_words(tasks), suite, shot_counts(shots), setting, measure)
    rater = "" if judge == PEOPLE else judge
    plan = with_raters(plan, classifier, rater, compares=bool(pairs))
    instructions = None
    if win_rate:
        instructions = Instructions(
            win_rate, limit, reply_tokens, seed, greedy, judge, database, labelers
        )
        instructions.check()
    run = Run(
        plan,
        search_path(data),
        prepare_process(MachineConfig(precision=precision, threads=threads)),
        begins,
        chat,
        skip_missing=bool(suite),
        quiet=quiet or json,
        instructions=instructions,
    )
    measured = [run.measure(*each) for each in zip(models, places_of(models, folder), strict=True)]
    found = measured[-1]
    if contamination:
        add_contamination(found.record, found.results, contamination)
    paired = [(measured[before], measured[after]) for before, after in pairs]
    versus = []
    if instructions is not None:
        versus = instructions.judged(paired, run.machine, quiet=run.quiet)
        found.record["win_rates"] = [each.as_dict() for each in versus]
    if contamination or versus:
        write_json(found.folder / "results.json", found.record)
    report(measured, compared(paired, versus), json=json)
    if instructions is not None and not json and (step := instructions.next_step(versus)):
        print(step)
    return 0
