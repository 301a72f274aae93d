"""``lmsmith eval``: how good a model is, on tasks of papers or of the user's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lmsmith.cli.output import choose_progress, print_json
from lmsmith.core.errors import UserError
from lmsmith.core.progress import RunProgress
from lmsmith.core.recipe import MachineConfig

if TYPE_CHECKING:
    from lmsmith.evaluation.comparing import Comparison
    from lmsmith.evaluation.suite import Setting, TaskResult
    from lmsmith.evaluation.tasks.spec import TaskSpec
    from lmsmith.evaluation.versus import Versus

Plan = list[tuple[str, "TaskSpec", "Setting"]]
"""(label, task, setting) of everything that is to be measured."""

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
    compare: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "",
    win_rate: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    reply_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a model on tasks: a table with intervals, every item's answer, and a page.

    Run it again after anything (Ctrl-C, kill): items that are answered are not asked again, and
    a higher --limit asks only what is new.

    Args:
        model: A run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        tasks: Names (lmsmith tasks ls), or .toml, .jsonl or .txt files of your own.
        suite: Tasks that go together: gpt2, gpt3, chat or safety.
        shots: Examples before each item, e.g. 0,1,4; fit for as many as the context holds. By
            default what the task says.
        fixed_shots: The same examples for all items; else drawn for each.
        limit: Only the first items of each task.
        data: Where tasks' files are; may be given more than once. Also LMSMITH_DATA.
        measure: The headline measure, if not the task's own.
        seed: Of examples, generated items, sampling and intervals.
        chat: Ask by the model's chat template.
        start_of_text: Whether texts begin with that token; auto: as the tokenizer does.
        precision: Of matrix products; auto: bf16 where the processor multiplies it.
        threads: Of one operation; 0 for all cores.
        contamination: Text that a model was trained on (.txt, .jsonl): the score without items
            that overlap with it; may be given more than once.
        classifier: What scores toxicity in the patterns' place: a task of your own (lmsmith task
            add) and its label for what is toxic.
        judge: The model that grades, classifies and judges; by default the one that is measured.
        compare: A second model, asked the same items: what the first gains over it.
        win_rate: Instructions (.jsonl) to which both models reply; --judge says whose reply is
            better: a reward model's folder, or any model that writes, shown both orders.
        reply_tokens: Longest reply to an instruction.
        folder: Where results go; evals/MODEL by default.
        json: Print one JSON object on standard output, and nothing else there.
        quiet: Show no progress.
    """
    from lmsmith.core.files import write_json
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.training.machine import prepare_process

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more", "leave it out for all items")
    if compare and folder_name(compare) == folder_name(model):
        raise UserError(f"--compare {compare}: the same model", "name another")
    if win_rate and not (compare and judge):
        raise UserError(
            f"--win-rate {win_rate}: needs a second model and a judge",
            "name both: --compare MODEL --judge MODEL",
        )
    plan: Plan = []
    if tasks or suite or not win_rate:
        plan = make_plan(tasks, suite, shots, fixed_shots, limit, seed, measure)
    plan = with_raters(plan, classifier, judge)
    run = Run(
        plan,
        search_path(data),
        prepare_process(MachineConfig(precision=precision, threads=threads)),
        {"auto": None, "always": True, "never": False}[start_of_text],
        chat,
        skip_missing=bool(suite),
        quiet=quiet or json,
        instructions=Instructions(win_rate, limit, reply_tokens, seed) if win_rate else None,
    )
    place = folder or Path("evals") / folder_name(model)
    beside = place.with_name(f"{place.name}-{folder_name(compare)}") if folder else None
    before = None
    if compare:
        before = run.measure(compare, beside or Path("evals") / folder_name(compare))
    found = run.measure(model, place)
    if contamination:
        add_contamination(found, contamination)
    versus = None
    if run.instructions is not None and before is not None:
        versus = run.instructions.judged(found, before, judge, run.machine, place)
        found.record["win_rate"] = versus.as_dict() | {"against": before.record["model"]}
    if contamination or versus:
        write_json(place / "results.json", found.record)
    return report(found, before, place, json, versus)


@dataclass(frozen=True)
class Measured:
    """A model's results; ``record`` is what results.json holds."""

    record: dict[str, Any]
    results: list[TaskResult]
    replies: Sequence[str] = ()


@dataclass(frozen=True)
class Instructions:
    """What both models reply to, and how long."""

    file: Path
    limit: int | None
    tokens: int
    seed: int

    def replies(self, subject: Any, place: Path, progress: RunProgress) -> list[str]:
        """A model's replies."""
        from lmsmith.evaluation.tasks.spec import AnswerSpec
        from lmsmith.evaluation.versus import read_instructions, write_replies

        asked = read_instructions(self.file, self.limit)
        spec = AnswerSpec(max_new_tokens=self.tokens, stop=())
        return write_replies(subject, asked, self.file, place, spec, self.seed, progress)

    def judged(
        self, found: Measured, before: Measured, judge: str, machine: Any, place: Path
    ) -> Versus:
        """Whose replies are better; what was judged goes to ``win-rate.jsonl``."""
        from lmsmith.core.files import write_jsonl
        from lmsmith.evaluation.judges import load_a_judge
        from lmsmith.evaluation.versus import judge_replies, read_instructions

        asked = read_instructions(self.file, self.limit)
        judging = load_a_judge(judge, machine)
        versus = judge_replies(judging, asked, found.replies, before.replies, self.seed)
        write_jsonl(place / "win-rate.jsonl", [dict(row) for row in versus.rows])
        return versus


@dataclass(frozen=True)
class Run:
    """What is to be measured of a model, and how."""

    plan: Plan
    path: list[Path]
    machine: Any
    begins: bool | None
    chat: bool
    skip_missing: bool
    quiet: bool
    instructions: Instructions | None = None

    def measure(self, model: str, place: Path) -> Measured:
        """Put everything to a model; results and items go to ``place``."""
        from lmsmith.core.locking import locked
        from lmsmith.core.signals import StopSignal
        from lmsmith.evaluation.methods.subject import load_subject

        progress = choose_progress(f"eval {model}", self.quiet)
        with StopSignal(), locked(place, progress):
            replying = ["replies"] if self.instructions else []
            progress.plan([label for label, _, _ in self.plan] + replying)
            try:
                subject = load_subject(model, self.machine, begins=self.begins, chat=self.chat)
                results = run_plan(
                    subject, self.plan, self.path, place, progress, skip_missing=self.skip_missing
                )
                replies = []
                if self.instructions is not None:
                    progress.stage_begins("replies", "")
                    started = time.monotonic()
                    replies = self.instructions.replies(subject, place, progress)
                    progress.stage_ends("replies", time.monotonic() - started)
            finally:
                progress.close()
            return Measured(record_results(subject, results, place), results, replies)


def add_contamination(found: Measured, files: Sequence[Path]) -> None:
    """Put each result's scores on clean and dirty items, by both rules, into the record."""
    from lmsmith.evaluation.contamination import RULES, find_overlaps, row_text, split_scores
    from lmsmith.evaluation.tasks.data import read_items
    from lmsmith.evaluation.tasks.spec import DataSpec

    def documents() -> Iterator[str]:
        for file in files:
            for item in read_items(file, DataSpec(file=str(file))):
                yield str(item.fields.get("text", ""))

    for result, record in zip(found.results, found.record["results"], strict=True):
        texts = {row["id"]: row_text(row) for row in result.rows}
        record["contamination"] = []
        for rule in RULES:
            dirty, n = find_overlaps(texts, documents(), rule, result.setting.seed)
            split = split_scores(result.rows, result.task.measure, dirty, rule, n)
            record["contamination"].append(split.as_dict())


def report(
    found: Measured,
    before: Measured | None,
    place: Path,
    json: bool,
    versus: Versus | None = None,
) -> int:
    """Write the page, and print the table or the JSON."""
    from lmsmith.evaluation.comparing import compare_rows
    from lmsmith.report.evaluation_page import build_evaluation_page

    comparisons, other = [], ""
    if before is not None:
        other = before.record["model"]
        by_name = {result.name: result for result in before.results}
        for result in found.results:
            rows = by_name[result.name].rows
            name, measure, seed = result.name, result.task.measure, result.setting.seed
            comparisons.append(compare_rows(name, measure, rows, result.rows, seed))
    page = build_evaluation_page(
        place,
        found.record,
        found.results,
        comparisons=comparisons,
        other=other,
        others={result.name: result.rows for result in before.results} if before else {},
        versus=versus,
    )
    if json:
        compared = {"compared_with": other, "comparisons": [c.as_dict() for c in comparisons]}
        print_json(found.record | (compared if other else {}) | {"report": str(page)})
        return 0
    print_tables(found, comparisons, other)
    if versus is not None:
        from lmsmith.report.versus import versus_sentences

        for sentence in versus_sentences(versus, found.record["model"], other):
            print(f"win rate: {sentence}")
    print(f"report: {page}")
    return 0


def make_plan(
    tasks: str, suite: str, shots: str, fixed: bool, limit: int | None, seed: int, measure: str
) -> Plan:
    """(label, task, setting) of everything that is to be measured.

    Raises:
        UserError: nothing, or something unknown, was named.
    """
    from dataclasses import replace

    from lmsmith.evaluation.suite import WITHOUT_SHOTS, Setting
    from lmsmith.evaluation.tasks.shipped import find_tasks, suites

    asked = [(word, shots) for word in split_words(tasks)]
    if suite:
        known = suites()
        if suite not in known:
            raise UserError(f"--suite {suite}: there is none", f"the suites: {', '.join(known)}")
        asked += [(task, shots or own) for task, own in known[suite]]
    if not asked:
        raise UserError("no tasks", "name some: --tasks lambada,copa, or --suite gpt3")
    plan: Plan = []
    for word, counts in asked:
        for task in find_tasks([word]):
            if measure:
                task = replace(task, headline=measure)
                problems = task.check()
                if problems:
                    raise UserError(f"--measure {measure}: task {task.name} has none such")
            for count in shot_counts(counts) or [task.shots]:
                setting = Setting(0 if task.kind in WITHOUT_SHOTS else count, fixed, limit, seed)
                label = f"{task.name} {setting.label}-shot"
                if all(label != other for other, _, _ in plan):
                    plan.append((label, task, setting))
    return plan


def with_raters(plan: Plan, classifier: str, judge: str) -> Plan:
    """The plan with what rates its tasks' texts.

    Raises:
        UserError: ``classifier`` is not a task and a label.
    """
    from dataclasses import replace

    name, _, label = classifier.partition("=")
    if classifier and not (name and label):
        raise UserError(f"--classifier {classifier}: no label", "write it as TASK=LABEL")
    changed: Plan = []
    for title, task, setting in plan:
        rating = task.rating
        if rating.by == "toxicity" and name:
            rating = replace(rating, classifier=name, label=label)
        if judge and (rating.by == "model" or rating.classifier):
            rating = replace(rating, grader=judge)
        rated = task.kind == "rated"
        changed.append((title, replace(task, rating=rating) if rated else task, setting))
    return changed


def split_words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shot_counts(text: str) -> list[int | None]:
    """The numbers of ``--shots``; None for ``fit``."""
    counts: list[int | None] = []
    for word in split_words(text):
        if word != "fit" and not word.isdecimal():
            raise UserError(f"--shots {word}: neither a number nor fit", "e.g. --shots 0,1,4")
        counts.append(None if word == "fit" else int(word))
    return counts


def run_plan(
    subject: Any,
    plan: Plan,
    path: list[Path],
    place: Path,
    progress: RunProgress,
    *,
    skip_missing: bool = False,
) -> list[TaskResult]:
    """Every row of a plan; tasks whose data is not here are passed over if ``skip_missing``."""
    from lmsmith.evaluation.suite import evaluate_task
    from lmsmith.evaluation.tasks.data import MissingData

    results = []
    for label, task, setting in plan:
        started = time.monotonic()
        progress.stage_begins(label, "")
        try:
            results.append(evaluate_task(subject, task, setting, path, place, progress))
        except MissingData as error:
            if not skip_missing:
                raise
            progress.say(f"{label} left out: {error.problem}")
        progress.stage_ends(label, time.monotonic() - started)
    return results


def record_results(subject: Any, results: list[TaskResult], place: Path) -> dict[str, Any]:
    """Write results.json, and return what is in it."""
    from lmsmith import __version__
    from lmsmith.core.files import write_json

    record: dict[str, Any] = {
        "model": subject.name,
        "parameters": subject.parameters,
        "fingerprint": subject.fingerprint,
        "precision": subject.precision,
        "starts_texts": subject.begins,
        "chat": subject.chat,
        "version": __version__,
        "results": [result.as_dict() for result in results],
    }
    write_json(place / "results.json", record)
    return record


def folder_name(model: str) -> str:
    """A folder's name from a model's: ``runs/small`` becomes ``runs--small``."""
    kept = [part for part in Path(model).parts if part not in ("/", "..", ".")]
    return "--".join(kept) or "model"


def print_tables(found: Measured, comparisons: list[Comparison], other: str) -> None:
    """Each task's value with its interval, beside the papers' figures of the nearest sizes."""
    from rich.console import Console

    from lmsmith.cli.eval_table import (
        comparison_table,
        contamination_table,
        paper_lines,
        results_table,
    )

    # A pipe has no width of its own; a table that is cut would say less.
    console = Console(width=None if sys.stdout.isatty() else 120)
    if found.results:
        console.print(results_table(found.results))
    for line in paper_lines(found.results, found.record["parameters"]):
        print(f"papers: {line}")
    if any("contamination" in result for result in found.record["results"]):
        print("contamination: the lower of all and clean items is the headline")
        console.print(contamination_table(found.record))
    if comparisons:
        console.print(comparison_table(comparisons, other, found.record["model"]))
