"""A stage's progress, watched: its wall time and warnings are kept for its record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.core.progress import Progress
from lmsmith.runs.records import write_record
from lmsmith.runs.signals import stop_requested
from lmsmith.runs.stage_folder import peak_memory_bytes

_SAVE_TIME_EVERY = 5.0  # seconds; at most so much of the wall time is lost by a kill -9


@dataclass
class WatchedProgress(Progress):
    """Hands a stage's progress on, and keeps started.json's wall time, so that a kill costs none.

    Warnings are kept too, for stage.json.
    """

    progress: Progress
    path: Path
    identity: Mapping[str, object]
    seconds_before: float
    peak_before: int
    warnings: list[str]
    began: float = field(default_factory=time.monotonic)
    saved: float = 0.0
    told: bool = False

    def seconds(self) -> float:
        """Wall time of the stage so far, in all its sittings."""
        return self.seconds_before + time.monotonic() - self.began

    def record(self) -> dict[str, object]:
        return {
            **self.identity,
            "wall_seconds": round(self.seconds(), 3),
            "peak_memory_bytes": max(self.peak_before, peak_memory_bytes()),
            "warnings": self.warnings,
        }

    def save(self) -> None:
        self.saved = time.monotonic()
        write_record(self.path, self.record())

    def begin(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.progress.begin(description, total, unit, done)

    def update(self, done: int, **figures: float) -> None:
        self.progress.update(done, **figures)
        if time.monotonic() - self.saved >= _SAVE_TIME_EVERY:
            self.save()
        if not self.told and stop_requested() is not None:
            self.told = True
            self.progress.note("stopping: saving first (Ctrl-C again stops at once)")

    def end(self) -> None:
        self.progress.end()

    def say(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.save()  # at once: a stage that is killed now need not say it again
        self.progress.say(text)

    def note(self, text: str) -> None:
        self.progress.note(text)
