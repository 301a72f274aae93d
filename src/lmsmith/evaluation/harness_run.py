"""Run lm-evaluation-harness's tasks on one of our models: ``lmsmith eval --harness lm-eval``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json
from lmsmith.core.progress import RunProgress
from lmsmith.core.version import VERSION
from lmsmith.evaluation.harness_tasks import (
    HarnessSetting,
    find_names,
    load_tasks,
    plain_results,
    quiet_and_offline_if_need_be,
    result_rows,
    run_tasks,
    write_samples,
)
from lmsmith.evaluation.model import load_evaluated_model
from lmsmith.evaluation.run import Evaluation, folder_name, stage
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal
from lmsmith.training.machine import ResolvedMachine


def evaluate_with_harness(
    word: str,
    tasks: Sequence[str],
    counts: Sequence[int | None],
    limit: int | None,
    seed: int,
    machine: ResolvedMachine,
    progress: RunProgress,
    *,
    chat: bool = False,
    begins: bool | None = None,
    include_path: Sequence[Path] = (),
    folder: Path | None = None,
) -> Evaluation:
    """Ask everything of a model; results.json and the samples go to ``folder``.

    Args:
        tasks: lm-eval's names.
        counts: numbers of examples; what each task says if empty.
        limit: only the first items of each task.
        include_path: folders of YAML tasks.
        folder: evals/MODEL/lm-eval if None.

    Returns:
        The evaluation; its rows stand in the record, its ``results`` are empty.

    Raises:
        UserError: ``counts`` has None, as many as fit, which lm-eval does not know; or there is no
            such task or model.
    """
    if None in counts:
        raise UserError("--shots fit: lm-eval takes a number", "e.g. --shots 0,5")
    place = folder or Path("evals") / folder_name(word) / "lm-eval"
    settings = [HarnessSetting(count, limit, seed, chat) for count in counts or [None]]
    with (
        StopSignal(),
        quiet_and_offline_if_need_be() as offline,
        locked(place, progress),
        contextlib.closing(progress),
    ):
        progress.plan(["tasks", "model", *(f"lm-eval{each.label}" for each in settings)])
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with stage(progress, "tasks"):
            manager, names = find_names(list(tasks), include_path)
            loaded = load_tasks(manager, names, offline=offline)
        with stage(progress, "model"):
            from lmsmith.evaluation.harness import HarnessModel  # it is made of lm-eval's class

            subject = load_evaluated_model(word, machine, begins=begins)
            model = HarnessModel(subject=subject, seed=seed, progress=progress)
        kept = place / f"answers-{subject.fingerprint}-{VERSION}"
        rows: list[dict[str, Any]] = []
        raw = []
        for number, setting in enumerate(settings):
            if number:  # lm-eval writes the number of shots into the tasks
                loaded = load_tasks(manager, names, offline=offline)
            started = time.monotonic()
            with stage(progress, f"lm-eval{setting.label}"):
                found = run_tasks(model, loaded, manager, setting, kept)
                seconds = time.monotonic() - started
                logs = write_samples(found, place, setting.label)
            rows += [row | {"log": logs.get(row["task"])} for row in result_rows(found)]
            raw.append(plain_results(found) | {"seconds": round(seconds, 3)})
        if model.truncated:
            progress.say(f"{model.truncated:,} prompts lost their beginning to fit the context")
        record = {
            "model": subject.name,
            "folder": str(place),
            "parameters": subject.parameters,
            "fingerprint": subject.fingerprint,
            "precision": subject.precision,
            "starts_texts": bool(subject.start),
            "chat": chat,
            "version": VERSION,
            "limit": limit,
            "seed": seed,
            "truncated": model.truncated,
            "results": rows,
            "lm_eval": raw,
        }
        write_json(place / "results.json", record)
    return Evaluation(word, place, record, [])
