"""Models put to everything ``lmsmith eval`` plans: tasks, and instructions to reply to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.cli.eval_versus import Instructions
from lmsmith.comparison.instructions import Replies
from lmsmith.core.progress import choose_progress
from lmsmith.evaluation.run import (
    Evaluation,
    Plan,
    model_to_evaluate,
    run_plan,
    stage,
    write_results,
)


@dataclass(frozen=True)
class Measured(Evaluation):
    """A model's results, and its replies to instructions if it was given any."""

    replies: Replies | None = None

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

    def measure(self, word: str, folder: Path) -> Measured:
        """Put everything to a model; results and items go to ``folder``."""
        progress = choose_progress(f"eval {word}", self.quiet)
        stages = [each.label for each in self.plan] + ["replies"] * bool(self.instructions)
        with model_to_evaluate(
            word, folder, stages, progress, self.machine, begins=self.begins, chat=self.chat
        ) as model:
            results = run_plan(
                model, self.plan, self.path, folder, progress, skip_missing=self.skip_missing
            )
            replies = None
            if self.instructions is not None:
                with stage(progress, "replies"):
                    replies = self.instructions.replies(model, folder, progress)
            return Measured(**vars(write_results(word, model, results, folder)), replies=replies)
