"""stage.json and started.json: a stage's records, with a checksum, and kept while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, finite, read_json, write_json
from lmsmith.core.progress import Progress
from lmsmith.runs.signals import stop_requested
from lmsmith.runs.stage_folder import peak_memory_bytes

_SAVE_EVERY = 5.0  # seconds; a kill -9 loses at most so much of the wall time

_MOST_BYTES = 1 << 26
"""Largest record, which names each file of a stage."""


class _Input(msgspec.Struct):
    stage: str
    files: dict[str, str] | None = None


class _Fields(msgspec.Struct):
    """The fields of records that are computed with; each may be missing."""

    stage: str = ""
    fingerprint: str = ""
    status: str = ""
    version: str = ""
    started: str = ""
    settings: dict[str, Any] | None = None
    inputs: dict[str, _Input] | None = None
    files: dict[str, dict[str, str | int | float]] | None = None
    outputs: dict[str, str] | None = None
    output_bytes: dict[str, int] | None = None
    metrics: dict[str, float | None] | None = None
    machine: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    warnings: list[str] | None = None
    wall_seconds: float | None = None
    peak_memory_bytes: float | None = None

    def __post_init__(self) -> None:
        names = [*(self.outputs or {}), *(self.output_bytes or {})]
        names += [each.stage for each in (self.inputs or {}).values()]
        if any("\0" in n or Path(n).is_absolute() or ".." in Path(n).parts for n in names):
            raise ValueError("a path leads out of the folder")


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write ``record`` with a checksum of itself, atomically."""
    plain: dict[str, object] = encode(dict(record))
    write_json(path, {**plain, "checksum": _checksum(plain)})


def read_record(path: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote; None if it is missing or damaged."""
    try:
        if not path.exists():
            return None
        record = read_json(path, _MOST_BYTES)
        msgspec.convert(record, _Fields)
    except (UserError, OSError, ArithmeticError, msgspec.ValidationError):
        return None
    if isinstance(record, dict) and record.get("checksum") == _checksum(record):
        return record
    return None


def recorded_seconds(record: Mapping[str, Any] | None) -> float:
    """Wall time in a record; 0 without one."""
    return float((record or {}).get("wall_seconds") or 0.0)


def recorded_outputs(folder: Path) -> dict[str, str]:
    """File → SHA-256 of the outputs of the finished stage in ``folder``; empty if none is."""
    record = read_record(folder / "stage.json")
    return {} if record is None else record["outputs"]


def _checksum(record: Mapping[str, object]) -> str:
    return fingerprint(finite({key: item for key, item in record.items() if key != "checksum"}))


class WatchedProgress(Progress):
    """Passes a stage's progress on, and keeps its wall time and warnings in started.json.

    Args:
        path: of started.json.
        identity: what the record says beside.
        before: the record of the stage's earlier sittings; empty if there were none.
    """

    def __init__(
        self,
        progress: Progress,
        path: Path,
        identity: Mapping[str, object],
        before: Mapping[str, Any],
    ) -> None:
        self.progress, self.path, self.identity = progress, path, identity
        self.seconds_before = recorded_seconds(before)
        self.peak_before = int(before.get("peak_memory_bytes") or 0)
        self.warnings: list[str] = list(before.get("warnings") or [])
        self.began = time.monotonic()
        self.saved, self.stop_noted = 0.0, False

    def seconds(self) -> float:
        """Wall time of the stage so far, earlier sittings included."""
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

    def end(self) -> None:
        self.progress.end()

    def note(self, text: str) -> None:
        self.progress.note(text)

    def update(self, done: int, **figures: float) -> None:
        self.progress.update(done, **figures)
        if time.monotonic() - self.saved >= _SAVE_EVERY:
            self.save()
        if not self.stop_noted and stop_requested() is not None:
            self.stop_noted = True
            self.note("stopping: saving first (Ctrl-C again stops at once)")

    def say(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.save()  # at once: a stage that is killed now need not say it again
        self.progress.say(text)
