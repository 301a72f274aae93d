"""Whether a stage is skipped, continued or run: its identity against what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.runs.folders import working_folder
from lmsmith.runs.identity import Identity, differences
from lmsmith.runs.records import read_record


@dataclass(frozen=True)
class Decision:
    """What is to be done with a stage, and why."""

    stage: str
    action: str
    """``skip``, ``continue``, ``run``, or ``depends`` where an input has to be made first."""
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


def decide(identity: Identity, run_folder: Path) -> Decision:
    """What is to be done with ``identity``'s stage, as its folder in ``run_folder`` is now."""
    name, folder = identity.stage, run_folder / identity.stage
    done, started = folder / "stage.json", working_folder(folder) / "started.json"
    reasons: list[str] = []
    if (record := read_record(done)) is not None:
        reasons = differences(record, identity) or _damaged_outputs(record, folder)
        if not reasons and identity.pending:
            sources = ", ".join(identity.pending)
            return Decision(name, "depends", f"runs if what it reads of {sources} changes")
        if not reasons:
            return Decision(name, "skip", "done, nothing changed")
    elif done.exists():
        reasons = ["its stage.json is damaged, so it is made again"]
    if (record := read_record(started)) is not None:
        if not (since := differences(record, identity)):
            return Decision(name, "continue", "was interrupted, continues where it was saved")
        reasons = reasons or since
    elif started.exists():
        reasons = reasons or ["its started.json is damaged, so it starts again"]
    return Decision(name, "run", "; ".join(reasons) or "not run yet")


def _damaged_outputs(record: Mapping[str, Any], folder: Path) -> list[str]:
    """What became of the outputs since; sizes only, since hashing gigabytes takes long."""
    for name, size in (record.get("output_bytes") or {}).items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return [f"its output {name} is missing"]
        if found != size:
            return [f"its output {name} has {found} bytes instead of {size}"]
    return []
