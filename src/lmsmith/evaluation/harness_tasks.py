"""lm-evaluation-harness's tasks on one of our models: ``lmsmith eval --harness lm-eval``."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import atomic_write, finite, write_json
from lmsmith.core.progress import choose_progress
from lmsmith.core.version import VERSION
from lmsmith.evaluation.model import load_evaluated_model
from lmsmith.evaluation.run import ModelEvaluation, folder_name, model_record, shot_counts, stage
from lmsmith.evaluation.tasks.sources import caches_alone, environment, why_offline
from lmsmith.options import EvaluateOptions
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal
from lmsmith.training.machine import ResolvedMachine

RESAMPLES = 1_000
"""For the standard errors that lm-eval draws; it takes 100,000 if it is not told otherwise."""

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")

KEPT = (
    "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
    "n-samples", "config", "lm_eval_version",
)  # fmt: skip
"""Keys that are kept of lm-eval's result; the others describe the machine."""


def evaluate_with_harness(
    word: str, options: EvaluateOptions, machine: ResolvedMachine
) -> ModelEvaluation:
    """Evaluate a model on lm-eval's tasks; results.json and the samples go to ``options.folder``.

    Returns:
        The evaluation; its rows are in the record, its ``results`` are empty.

    Raises:
        UserError: an option is not for lm-eval's tasks, or there is no such task or model.
    """
    own = ("suite", "fixed_shots", "data", "measure", "contamination", "judge", "classifier")
    if given := [f"--{name.replace('_', '-')}" for name in own if getattr(options, name)]:
        problem = f"{', '.join(given)}: not for --harness lm-eval"
        raise UserError(problem, "leave it out, or measure with lmsmith's own tasks")
    counts = shot_counts(options.shots)
    if None in counts:
        raise UserError("--shots fit: lm-eval takes a number", "e.g. --shots 0,5")
    place = options.folder or Path("evals") / folder_name(word) / "lm-eval"
    progress = choose_progress(f"eval {word}", options.quiet)
    rounds = {"" if count is None else f"-{count}-shot": count for count in counts or [None]}
    with (
        StopSignal(),
        quiet_and_offline_if_need_be() as offline,
        locked(place, progress),
        contextlib.closing(progress),
    ):
        progress.plan(["tasks", "model", *(f"lm-eval{label}" for label in rounds)])
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with stage(progress, "tasks"):
            manager, names = _find_names(options.tasks, options.include_path)
            loaded = _load_tasks(manager, names, offline=offline)
        with stage(progress, "model"):
            from lmsmith.evaluation.harness import HarnessModel  # it is made of lm-eval's class

            subject = load_evaluated_model(word, machine, begins=options.begins)
            model = HarnessModel(subject=subject, seed=options.seed, progress=progress)
        kept = place / f"answers-{subject.fingerprint}-{VERSION}"
        rows: list[dict[str, Any]] = []
        raw: list[dict[str, Any]] = []
        for label, count in rounds.items():
            if raw:  # lm-eval writes the number of shots into the tasks
                loaded = _load_tasks(manager, names, offline=offline)
            started = time.monotonic()
            with stage(progress, f"lm-eval{label}"):
                found = _run_tasks(model, loaded, manager, options, count, kept)
                seconds = time.monotonic() - started
                logs = _write_samples(found, place, label)
            rows += [row | {"log": logs.get(row["task"])} for row in _result_rows(found)]
            raw.append(_plain_results(found) | {"seconds": round(seconds, 3)})
        if model.truncated:
            progress.say(f"{model.truncated:,} prompts lost their beginning to fit the context")
        record = model_record(subject) | {
            "folder": str(place),
            "chat": options.chat,
            "limit": options.limit,
            "seed": options.seed,
            "truncated": model.truncated,
            "results": rows,
            "lm_eval": raw,
        }
        write_json(place / "results.json", record)
    return ModelEvaluation(word, place, record, [])


@contextlib.contextmanager
def quiet_and_offline_if_need_be() -> Iterator[bool]:
    """Let lm-eval and datasets print nothing, and ask no network where there is none.

    They would ask for data that is not here for half a minute. Yields whether the hub is left
    alone: it does not answer, or the user says so (``HF_HUB_OFFLINE=1``).
    """
    offline = bool(why_offline())
    with (
        environment({"DISABLE_MULTIPROC": "1"}),  # several processes resample more slowly
        caches_alone() if offline else contextlib.nullcontext(),
        _silent_bars(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of lm-eval's and its libraries' authors, to themselves
        yield offline


@contextlib.contextmanager
def _silent_bars() -> Iterator[None]:
    """No bars of tqdm's, whose programs leave no other way; the progress shown is our own."""
    with needs_extra("harness"):
        from tqdm import tqdm
    begin = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs | {"disable": True})

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = begin


def _find_names(words: Sequence[str], folders: Sequence[Path]) -> tuple[Any, list[str]]:
    """lm-eval's task manager, and the names of tasks, groups and tags that the words mean.

    Args:
        words: names, patterns (``mmlu_*``), or YAML files.
        folders: of YAML tasks of the user's own, before lm-eval's.
    """
    with needs_extra("harness"):
        import lm_eval.tasks
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include-path {folder}: no such folder", "name one of YAML tasks")
    if not words:
        raise UserError("no tasks", "name some of lm-eval's: --tasks arc_easy,piqa")
    paths = [str(folder) for folder in folders]
    if paths:  # lm-eval's own are many thousand files to read
        manager = lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
        own = set(manager.all_subtasks)
        if own.issuperset(words):
            return manager, list(words)
    manager = lm_eval.tasks.TaskManager(include_path=paths)
    names: list[str] = []
    for word in words:
        found = [word] if word in manager.task_index else list(manager.match_tasks([word]))
        if not found and Path(word).is_file() and Path(word).suffix in (".yaml", ".yml"):
            found = [word]
        if not found:
            near = difflib.get_close_matches(word, manager.all_tasks, n=4, cutoff=0.6)
            fix = f"near it are: {', '.join(near)}" if near else "lm_eval ls tasks lists them"
            raise UserError(f"--tasks {word}: lm-eval has no such task", fix)
        names += [name for name in found if name not in names]
    return manager, names


def _load_tasks(manager: Any, names: Sequence[str], *, offline: bool) -> list[Any]:
    """The tasks with their data, groups as a whole."""
    loaded: list[Any] = []
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:  # of any library that reads data, or of the task's own code
            raise _loading_error(name, error, offline) from error
        for task in found["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(
                    f"--tasks {name}: lm-eval would run what the model writes, unguarded",
                    "measure code in our sandbox: lmsmith eval MODEL --tasks human_eval",
                )
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"--tasks {name}: asks about pictures", "models here read texts")
        group = found["groups"].get(name)
        loaded += list(found["tasks"].values()) if group is None else [group]
    return loaded


def _loading_error(name: str, error: Exception, offline: bool) -> UserError:
    first = (str(error).strip() or repr(error)).splitlines()[0]
    problem = f"--tasks {name}: lm-eval cannot load it or its data ({first})"
    if offline:
        return UserError(
            f"{problem}; the hub was not asked, since it does not answer or HF_HUB_OFFLINE is set",
            "run it once with a network, which keeps the data here, or write a YAML task over a "
            "file of yours: --include-path FOLDER",
        )
    return UserError(problem, "check the task's dataset_path, splits and templates")


def _run_tasks(
    model: Any,
    tasks: Sequence[Any],
    manager: Any,
    options: EvaluateOptions,
    shots: int | None,
    kept: Path,
) -> dict[str, Any]:
    """lm-eval's results of a model, on tasks that were not asked before.

    Args:
        model: a `lmsmith.evaluation.harness.HarnessModel`.
        kept: the beginning of a file's name, for answers to be found again after a kill.
    """
    import jinja2
    import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=shots,
            limit=options.limit,
            use_cache=str(kept),
            bootstrap_iters=RESAMPLES,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat,
            task_manager=manager,
            **dict.fromkeys(SEEDS, options.seed),
        )
    except (ValueError, AssertionError, KeyError, jinja2.TemplateError) as error:
        text = (str(error).strip() or repr(error)).splitlines()[0]
        problem = f"lm-eval cannot ask the tasks ({type(error).__name__}: {text})"
        raise UserError(problem, "check the tasks' splits and templates, or --shots") from error
    return dict(found)


def _result_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a task or group: its measures with lm-eval's values and standard errors."""
    rows = []
    for name, metrics in found["results"].items():
        measures = []
        for key, value in metrics.items():
            metric, parted, kept_by = key.partition(",")
            if not parted or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{kept_by}")
            measure = {
                "measure": metric,
                "filter": kept_by,
                "value": value,
                "stderr": stderr if isinstance(stderr, int | float) else None,
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
            }
            measures.append(measure)
        row = {
            "task": name,
            "alias": metrics.get("alias", name),
            "shots": found["n-shot"].get(name),
            "items": found["n-samples"].get(name, {}).get("effective"),
            "version": found["versions"].get(name),
            "measures": measures,
        }
        rows.append(row)
    return rows


def _write_samples(found: Mapping[str, Any], place: Path, label: str) -> dict[str, str]:
    """Write what lm-eval keeps of each item, a JSONL file a task; their paths by task."""
    from lm_eval.utils import handle_non_serializable

    paths = {}
    for name, samples in found["samples"].items():
        path = place / f"samples-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}{label}.jsonl"
        lines = [
            json.dumps(finite(each), default=handle_non_serializable, ensure_ascii=False) + "\n"
            for each in sorted(samples, key=lambda sample: int(sample["doc_id"]))
        ]
        atomic_write(path, "".join(lines))
        paths[name] = str(path)
    return paths


def _plain_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's own results as JSON has them, without the samples and the machine."""
    from lm_eval.utils import handle_non_serializable

    kept = {name: found[name] for name in KEPT if name in found}
    plain: dict[str, Any] = json.loads(
        json.dumps(finite(kept), default=handle_non_serializable, ensure_ascii=False)
    )
    return plain
