"""A run folder, read into plain records whether the run is done, half done or out of date."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing, read_json
from lmsmith.report.numbers import as_number
from lmsmith.report.run.words import STAGE_WORDS
from lmsmith.runs.integrity import check_shown, finished_record, remedy
from lmsmith.runs.metrics_log import require_whole_metrics

_SHOWN = ("predictions.jsonl", "samples.jsonl", "frontier.jsonl", "calibration.json")

Status = Literal["done", "outdated", "started", "not run"]
Row = dict[str, Any]

_RECORD_FILES: Mapping[str, Status] = {"stage.json": "done", "started.json": "started"}


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run as its folder tells it; empty where the stage has not run."""

    name: str
    folder: Path
    status: Status
    manifest: Row
    settings: Row
    metrics: Row
    machine: Row
    hardware: Row
    wall_seconds: float | None
    peak_memory_bytes: float | None

    @property
    def finished(self) -> bool:
        return self.status in ("done", "outdated")


@dataclass(frozen=True)
class RunRecord:
    """A run: its recipe file and every stage in the order of the pipeline."""

    folder: Path
    name: str
    manifest: Row
    stages: Mapping[str, StageRecord]

    @property
    def recipe(self) -> Row:
        """The resolved recipe, whether ``recipe.json`` holds it whole or under ``recipe``."""
        inner = self.manifest.get("recipe")
        return inner if isinstance(inner, dict) else self.manifest

    def expects(self, stage: str) -> bool:
        """Whether the recipe names the stage; where none is known, one that pretrains is meant."""
        tables = self.recipe.get("stages")
        named = tables if isinstance(tables, dict) else self.recipe
        return stage in named if any(name in named for name in STAGE_WORDS) else stage != "base"

    @property
    def planned(self) -> list[StageRecord]:
        """The stages that the recipe names or that have been run, in order."""
        return [s for s in self.stages.values() if s.status != "not run" or self.expects(s.name)]

    @property
    def recipe_name(self) -> str:
        name = self.recipe.get("name") or self.manifest.get("recipe")
        return name if isinstance(name, str) else self.name

    @property
    def hardware(self) -> Row:
        tables = [as_table(self.manifest.get("hardware"))]
        tables += [stage.hardware for stage in self.stages.values()]
        return next((table for table in tables if table), {})

    @property
    def versions(self) -> Row:
        """Package versions, and the lmsmith version and commit the stages were made with."""
        versions = {**as_table(self.manifest.get("versions"))}
        for key, name in (("version", "lmsmith"), ("git_commit", "git_commit")):
            said = [stage.manifest.get(key) for stage in self.stages.values()]
            if known := [value for value in said if value]:
                versions[name] = known[-1]
        return versions


def as_table(value: object) -> Row:
    """``value``, or an empty table where it is none."""
    return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> RunRecord:
    """Read the run in ``folder``.

    Raises:
        UserError: the folder does not exist or is not a run (the run folders near it are named);
            or a finished stage's record, or an output that is shown, is damaged.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise _not_a_run(folder)
    manifest = read_json(folder / "recipe.json") if (folder / "recipe.json").is_file() else {}
    if not isinstance(manifest, dict):
        raise UserError(f"{folder / 'recipe.json'}: expected a JSON object")
    extra = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in STAGE_WORDS and (path / "stage.json").is_file()
    )
    stages = {name: _read_stage(folder / name) for name in [*STAGE_WORDS, *extra]}
    return RunRecord(folder, folder.resolve().name, manifest, _mark_outdated(stages))


def count_parameters(model_folder: Path) -> int | None:
    """Numbers in ``model.safetensors``, counted from its header without loading a weight."""
    try:
        with safe_open(model_folder / "model.safetensors", framework="numpy") as file:
            names = file.keys()
            count: int = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
            return count
    except (OSError, SafetensorError):
        return None


def _read_stage(folder: Path) -> StageRecord:
    manifest: object = {}
    status: Status = "not run"
    found = next((name for name in _RECORD_FILES if (folder / name).is_file()), None)
    if found == "stage.json":
        manifest, status = finished_record(folder), _RECORD_FILES[found]
        check_shown(folder, ("*.json", "*.jsonl"), _SHOWN)
        require_whole_metrics(folder / "metrics.jsonl", f"take the line away, or {remedy(folder)}")
    elif found is not None:
        manifest, status = read_json(folder / found), _RECORD_FILES[found]
    if not isinstance(manifest, dict):
        raise UserError(f"{folder}/{found}: expected a JSON object", "run the recipe again")
    keys = ("settings", "metrics", "machine", "hardware")
    values: Row = {key: as_table(manifest.get(key)) for key in keys}
    for key in ("wall_seconds", "peak_memory_bytes"):
        values[key] = as_number(manifest.get(key))
    return StageRecord(folder.name, folder, status, manifest, **values)


def _mark_outdated(stages: dict[str, StageRecord]) -> dict[str, StageRecord]:
    """A finished stage is outdated when one of its inputs has changed since."""
    marked = dict(stages)
    for name, stage in stages.items():
        for entry in as_table(stage.manifest.get("inputs")).values():
            parent = marked.get(entry.get("stage", "")) if isinstance(entry, dict) else None
            if stage.status == "done" and parent is not None and _has_changed(parent, entry):
                marked[name] = replace(stage, status="outdated")
    return marked


def _has_changed(parent: StageRecord, entry: Row) -> bool:
    """Whether a stage's outputs differ from the ``entry`` of a stage that has read them."""
    if parent.status != "done":
        return parent.status != "not run"
    read = entry.get("files")
    if not isinstance(read, dict):  # recorded by a version that compared settings
        return bool(parent.manifest.get("fingerprint") != entry.get("fingerprint"))
    outputs = parent.manifest.get("outputs") or {}
    return any(outputs.get(name) != content for name, content in read.items())


def _is_run(folder: Path) -> bool:
    if not folder.is_dir() or (folder / "stage.json").is_file():
        return False
    records = [folder / name / file for name in STAGE_WORDS for file in _RECORD_FILES]
    return any(path.is_file() for path in [folder / "recipe.json", *records])


def _not_a_run(folder: Path) -> UserError:
    problem = f"{folder}: not a run folder"
    if not folder.exists():
        problem = missing(folder, "no such folder")
    problem += " (expected the folder that `lmsmith run` wrote, with recipe.json in it)"
    near = ", ".join(map(str, _runs_near(folder)))
    fix = f"run folders near it: {near}" if near else "make one with `lmsmith run quickstart`"
    return UserError(problem, fix)


def _runs_near(folder: Path) -> list[Path]:
    """Run folders above, inside and beside ``folder``, the most alike name first, at most 8."""
    places = [folder, folder.parent, folder.parent / "runs", folder / "runs", Path("runs")]
    found: dict[Path, Path] = {}
    for candidate in [folder.parent, *(p for place in places for p in _children(place))]:
        if candidate.resolve() not in found and _is_run(candidate):
            found[candidate.resolve()] = candidate

    def alike(path: Path) -> float:
        return difflib.SequenceMatcher(None, path.resolve().name, folder.name).ratio()

    return sorted(found.values(), key=lambda path: (-alike(path), str(path)))[:8]


def _children(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
