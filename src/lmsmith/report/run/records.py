"""A run folder, read into plain records whether the run is done, half done or out of date."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing, read_json
from lmsmith.report.run.words import STAGE_WORDS

Status = Literal["done", "outdated", "started", "not run"]
Row = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run as its folder tells it; empty where the stage has not run."""

    name: str
    folder: Path
    status: Status
    manifest: Row = field(default_factory=dict)

    def _table(self, key: str) -> Row:
        value = self.manifest.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def settings(self) -> Row:
        return self._table("settings")

    @property
    def metrics(self) -> Row:
        return self._table("metrics")

    @property
    def machine(self) -> Row:
        return self._table("machine")

    @property
    def hardware(self) -> Row:
        return self._table("hardware")

    @property
    def finished(self) -> bool:
        return self.status in ("done", "outdated")

    @property
    def wall_seconds(self) -> float | None:
        return as_number(self.manifest.get("wall_seconds"))

    @property
    def peak_memory_bytes(self) -> float | None:
        return as_number(self.manifest.get("peak_memory_bytes"))


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
        table = self.manifest.get("hardware")
        if isinstance(table, dict) and table:
            return table
        return next((s.hardware for s in self.stages.values() if s.hardware), {})

    @property
    def versions(self) -> Row:
        """Package versions, and the lmsmith version and commit the stages were made with."""
        versions: Row = {}
        for stage in self.stages.values():
            if stage.manifest.get("version"):
                versions["lmsmith"] = stage.manifest["version"]
            if stage.manifest.get("git_commit"):
                versions["git_commit"] = stage.manifest["git_commit"]
        table = self.manifest.get("versions")
        return {**(table if isinstance(table, dict) else {}), **versions}


def as_number(value: object) -> float | None:
    """``value`` as a float, or None when it is not a finite number (JSON has no NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(folder: Path) -> RunRecord:
    """Read the run in ``folder``.

    Raises:
        UserError: the folder does not exist or is not a run; the run folders near it are named.
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
    for file_name, status in (("stage.json", "done"), ("started.json", "started")):
        path = folder / file_name
        if path.is_file():
            manifest = read_json(path)
            if not isinstance(manifest, dict):
                raise UserError(f"{path}: expected a JSON object", "run the recipe again")
            return StageRecord(
                folder.name, folder, "done" if status == "done" else "started", manifest
            )
    return StageRecord(folder.name, folder, "not run")


def _mark_outdated(stages: dict[str, StageRecord]) -> dict[str, StageRecord]:
    """A finished stage is outdated when an input of it has been made anew since."""
    marked: dict[str, StageRecord] = {}
    for name, stage in stages.items():
        inputs = stage.manifest.get("inputs")
        outdated = False
        for entry in inputs.values() if isinstance(inputs, dict) else ():
            parent = stages.get(entry.get("stage", "")) if isinstance(entry, dict) else None
            if parent is None or stage.status != "done":
                continue
            stale = marked.get(parent.name, parent).status == "outdated"
            changed = parent.finished and not _still_made(parent, entry)
            outdated = outdated or stale or changed or parent.status == "started"
        status: Status = "outdated" if outdated else stage.status
        marked[name] = StageRecord(name, stage.folder, status, stage.manifest)
    return marked


def _still_made(parent: StageRecord, entry: Row) -> bool:
    """Whether a stage's outputs are those that another, whose record holds ``entry``, has read."""
    read = entry.get("files")
    if not isinstance(read, dict):  # recorded by a version that compared settings
        return bool(parent.manifest.get("fingerprint") == entry.get("fingerprint"))
    outputs = parent.manifest.get("outputs") or {}
    return all(outputs.get(name) == content for name, content in read.items())


def _is_run(folder: Path) -> bool:
    if not folder.is_dir() or (folder / "stage.json").is_file():
        return False
    if (folder / "recipe.json").is_file():
        return True
    return any(
        (folder / name / file).is_file()
        for name in STAGE_WORDS
        for file in ("stage.json", "started.json")
    )


def _not_a_run(folder: Path) -> UserError:
    problem = f"{folder}: not a run folder"
    if not folder.exists():
        problem = missing(folder, "no such folder")
    problem += " (expected the folder that `lmsmith run` wrote, with recipe.json in it)"
    near = _runs_near(folder)
    if near:
        return UserError(problem, "run folders near it: " + ", ".join(map(str, near)))
    return UserError(problem, "make one with `lmsmith run quickstart`")


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
