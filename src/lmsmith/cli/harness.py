"""``lmsmith eval --harness lm-eval``: tasks of lm-evaluation-harness, asked of our models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from lmsmith.cli.eval_plan import shot_counts, split_words
from lmsmith.cli.output import print_json, table_console
from lmsmith.core.errors import UserError
from lmsmith.core.progress import RunProgress, choose_progress
from lmsmith.core.recipe import MachineConfig


@dataclass(frozen=True)
class HarnessRun:
    """What was asked for on the command line; see `lmsmith.cli.eval.evaluate`."""

    model: str
    tasks: str
    shots: str
    limit: int | None
    seed: int
    chat: bool
    begins: bool | None
    precision: Literal["auto", "bf16", "fp32"]
    threads: int
    include_path: Sequence[Path]
    folder: Path | None
    quiet: bool

    def counts(self) -> list[int | None]:
        """Numbers of examples; None alone for what each task says.

        Raises:
            UserError: as many as fit, which lm-eval does not know.
        """
        counts = shot_counts(self.shots)
        if None in counts:
            raise UserError("--shots fit: lm-eval takes a number", "e.g. --shots 0,5")
        return counts or [None]

    def measure(self) -> dict[str, Any]:
        """Ask everything; what is printed as JSON, and kept as results.json."""
        from lmsmith.core.files import write_json
        from lmsmith.evaluation.harness_tasks import quiet_and_offline_if_need_be
        from lmsmith.evaluation.run import folder_name
        from lmsmith.runs.locking import locked
        from lmsmith.runs.signals import StopSignal

        counts = self.counts()
        place = self.folder or Path("evals") / folder_name(self.model) / "lm-eval"
        progress = choose_progress(f"eval {self.model}", self.quiet)
        with StopSignal(), quiet_and_offline_if_need_be() as offline, locked(place, progress):
            try:
                record = self._measured(counts, place, progress, offline)
            finally:
                progress.close()
            write_json(place / "results.json", record)
        return record

    def _measured(
        self, counts: Sequence[int | None], place: Path, progress: RunProgress, offline: bool
    ) -> dict[str, Any]:
        import logging

        from lmsmith.core.version import VERSION
        from lmsmith.evaluation.harness_tasks import (
            HarnessSetting,
            find_names,
            load_tasks,
            plain_results,
            result_rows,
            run_tasks,
            write_samples,
        )

        settings = [HarnessSetting(count, self.limit, self.seed, self.chat) for count in counts]
        labels = [f"lm-eval{setting.label}" for setting in settings]
        progress.plan(["tasks", "model", *labels])
        started = _begin(progress, "tasks")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager, names = find_names(split_words(self.tasks), self.include_path)
        tasks = load_tasks(manager, names, offline=offline)
        progress.stage_ends("tasks", time.monotonic() - started)

        started = _begin(progress, "model")
        model = self._model(progress)
        progress.stage_ends("model", time.monotonic() - started)

        subject = model.subject
        kept = place / f"answers-{subject.fingerprint}-{VERSION}"
        rows: list[dict[str, Any]] = []
        raw = []
        for number, (label, setting) in enumerate(zip(labels, settings, strict=True)):
            if number:  # lm-eval writes the number of shots into the tasks
                tasks = load_tasks(manager, names, offline=offline)
            started = _begin(progress, label)
            found = run_tasks(model, tasks, manager, setting, kept)
            seconds = time.monotonic() - started
            logs = write_samples(found, place, setting.label)
            rows += [row | {"log": logs.get(row["task"])} for row in result_rows(found)]
            raw.append(plain_results(found) | {"seconds": round(seconds, 3)})
            progress.stage_ends(label, seconds)
        if model.truncated:
            progress.say(f"{model.truncated:,} prompts lost their beginning to fit the context")
        return {
            "model": subject.name,
            "folder": str(place),
            "parameters": subject.parameters,
            "fingerprint": subject.fingerprint,
            "precision": subject.precision,
            "starts_texts": bool(subject.start),
            "chat": self.chat,
            "version": VERSION,
            "limit": self.limit,
            "seed": self.seed,
            "truncated": model.truncated,
            "results": rows,
            "lm_eval": raw,
        }

    def _model(self, progress: RunProgress) -> Any:
        from lmsmith.evaluation.harness import HarnessModel
        from lmsmith.evaluation.model import load_evaluated_model
        from lmsmith.training.machine import prepare_process

        machine = prepare_process(MachineConfig(precision=self.precision, threads=self.threads))
        subject = load_evaluated_model(self.model, machine, begins=self.begins)
        return HarnessModel(subject=subject, seed=self.seed, progress=progress)


def report_harness(record: Mapping[str, Any], *, json: bool) -> None:
    """Print the table or the JSON."""
    if json:
        print_json(record)
        return
    table_console().print(results_table(record["results"]))
    if record["limit"]:
        print(f"of each task the first {record['limit']} items, as lm-eval takes them")
    print(f"items: {record['folder']}")


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a measure: lm-eval's value and standard error."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "shots", "items", "measure", "value", "standard error", "better"):
        on_left = name in ("task", "measure", "better")
        table.add_column(name, justify="left" if on_left else "right", no_wrap=True)
    words = {True: "higher", False: "lower"}
    for row in rows:
        for place, each in enumerate(row["measures"]):
            first = [row["alias"], _count(row["shots"]), _count(row["items"])]
            filtered = each["filter"] not in ("none", "")
            table.add_row(
                *(first if place == 0 else [""] * 3),
                f"{each['measure']} ({each['filter']})" if filtered else each["measure"],
                f"{each['value']:,.4f}",
                "" if each["stderr"] is None else f"± {each['stderr']:,.4f}",
                words.get(each["higher_is_better"], ""),
            )
    return table


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _begin(progress: RunProgress, stage: str) -> float:
    progress.stage_begins(stage, "")
    return time.monotonic()
