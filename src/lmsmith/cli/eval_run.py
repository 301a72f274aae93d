"""A model put to everything ``lmsmith eval`` plans, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.cli.eval_plan import Plan
from lmsmith.cli.eval_versus import Instructions
from lmsmith.cli.output import choose_progress
from lmsmith.core.errors import UserError
from lmsmith.core.progress import RunProgress

if TYPE_CHECKING:
    from lmsmith.comparison.instructions import Replies
    from lmsmith.evaluation.suite import TaskResult


@dataclass(frozen=True)
class Measured:
    """A model's results.

    Attributes:
        word: as the user named it.
        place: the folder of its results.
        record: what results.json holds.
        results: of the tasks.
        replies: to instructions, if there are any.
    """

    word: str
    place: Path
    record: dict[str, Any]
    results: list[TaskResult]
    replies: Replies | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return str(self.record["model"])

    @property
    def replied(self) -> Replies:
        """Its replies, which there are."""
        assert self.replies is not None, "asked for where instructions were put to the model"
        return self.replies


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
        from lmsmith.evaluation.model import load_evaluated_model
        from lmsmith.runs.locking import locked
        from lmsmith.runs.signals import StopSignal

        progress = choose_progress(f"eval {model}", self.quiet)
        with StopSignal(), locked(place, progress):
            replying = ["replies"] if self.instructions else []
            progress.plan([label for label, _, _ in self.plan] + replying)
            try:
                subject = load_evaluated_model(
                    model, self.machine, begins=self.begins, chat=self.chat
                )
                results = run_plan(
                    subject, self.plan, self.path, place, progress, skip_missing=self.skip_missing
                )
                replies = None
                if self.instructions is not None:
                    progress.stage_begins("replies", "")
                    started = time.monotonic()
                    replies = self.instructions.replies(subject, place, progress)
                    progress.stage_ends("replies", time.monotonic() - started)
            finally:
                progress.close()
            record = record_results(subject, results, place)
            return Measured(model, place, record, results, replies)


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
    from lmsmith.core.files import write_json
    from lmsmith.core.version import VERSION

    record: dict[str, Any] = {
        "model": subject.name,
        "parameters": subject.parameters,
        "fingerprint": subject.fingerprint,
        "precision": subject.precision,
        "starts_texts": bool(subject.start),
        "chat": subject.chat,
        "version": VERSION,
        "results": [result.as_dict() for result in results],
    }
    write_json(place / "results.json", record)
    return record


def add_contamination(found: Measured, files: Sequence[Path]) -> None:
    """Put each result's scores on clean and dirty items, by both rules, into the record."""
    from lmsmith.evaluation.contamination import RULES, find_overlaps, row_text, split_scores

    def documents() -> Iterator[str]:
        for file in files:
            yield from _texts(file)

    for result, record in zip(found.results, found.record["results"], strict=True):
        texts = {row["id"]: row_text(row) for row in result.rows}
        record["contamination"] = []
        for rule in RULES:
            dirty, n = find_overlaps(texts, documents(), rule, result.setting.seed)
            split = split_scores(result.rows, result.task.measure, dirty, rule, n)
            record["contamination"].append(split.as_dict())


def check_corpora(files: Sequence[Path]) -> None:
    """Refuse a corpus without a text before anything is measured.

    Raises:
        UserError: there is none in a file.
    """
    for file in files:
        if not any(text.strip() for text in _texts(file)):
            problem = f"--contamination {file}: no text in it"
            raise UserError(problem, "name what the model was trained on")


def _texts(file: Path) -> Iterator[str]:
    from lmsmith.evaluation.contamination import document_text
    from lmsmith.evaluation.tasks.data import read_items
    from lmsmith.evaluation.tasks.spec import DataSpec

    for item in read_items(file, DataSpec(file=str(file))):
        yield document_text(item.fields)
