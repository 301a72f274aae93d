"""Whether a stage is skipped, continued or run: its identity against what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.identity import Identity, differences
from lmsmith.core.records import read_record, recorded_contents


@dataclass(frozen=True)
class Decision:
    """What is to be done with a stage, and why."""

    stage: str
    action: str
    """``skip``, ``continue`` or ``run``."""
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


def decide(identity: Identity, run_folder: Path) -> Decision:
    """What is to be done with ``identity``'s stage, as its folder in ``run_folder`` is now."""
    name, folder = identity.stage, run_folder / identity.stage
    done, started = folder / "stage.json", folder / "started.json"
    record = read_record(done)
    if record is not None:
        reasons = (
            differences(record, identity)
            or _damaged_outputs(record, folder)
            or _other_inputs(record, run_folder)
        )
        if not reasons:
            return Decision(name, "skip", "done, nothing changed")
        return Decision(name, "run", "; ".join(reasons))
    if done.exists():
        return Decision(name, "run", "its stage.json is damaged, so it is made again")
    record = read_record(started)
    if record is None:
        damaged = "its started.json is damaged, so it begins anew"
        return Decision(name, "run", damaged if started.exists() else "not run yet")
    reasons = differences(record, identity) or _other_inputs(record, run_folder)
    if not reasons:
        return Decision(name, "continue", "was interrupted, continues where it was saved")
    return Decision(name, "run", "; ".join(reasons))


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


def _other_inputs(record: Mapping[str, Any], run_folder: Path) -> list[str]:
    """Inputs made again since, from the same settings but with another result."""
    reasons = []
    for source, content in (record.get("input_contents") or {}).items():
        now = recorded_contents(run_folder / source)
        if now is not None and now != content:
            reasons.append(f"its input {source} came out differently")
    return reasons
