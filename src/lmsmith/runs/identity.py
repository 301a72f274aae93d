"""A stage's identity: all that decides its outputs, compared with its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lmsmith.core.config import MISSING, Problem, as_toml
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, sha256_file
from lmsmith.core.recipe import Recipe
from lmsmith.core.version import VERSION
from lmsmith.runs.folders import working_folder
from lmsmith.runs.records import read_record, recorded_outputs


@dataclass(frozen=True)
class Identity:
    """All that decides a stage's outputs; ``fingerprint`` stands for the whole of it."""

    stage: str
    format: int
    settings: dict[str, object]
    seed: int
    # Of [machine] only the precision is here: threads, compiling and determinism change how
    # fast and in what order numbers are added, not what is computed.
    precision: str
    inputs: dict[str, dict[str, object]]
    """role → {"stage", "files": name → SHA-256 of each file that is read, None until it is made}"""
    files: dict[str, dict[str, object]]
    """external file → {"sha256", "bytes", "modified_ns"}"""
    engine: str = "lmsmith"
    """Engine that draws the stage's responses; another one draws other responses."""

    @property
    def fingerprint(self) -> str:
        # What files hold counts, not where they are: a demo's data moves with its environment.
        contents = [file["sha256"] for file in self.files.values()]
        decisive = {**vars(self), "files": contents}
        if self.engine == "lmsmith":  # as before there was another
            del decisive["engine"]
        return fingerprint(decisive)

    @property
    def pending(self) -> list[str]:
        """The stages whose outputs are read and are not made yet."""
        inputs = self.inputs.values()
        return list(dict.fromkeys(str(each["stage"]) for each in inputs if each["files"] is None))

    def as_dict(self) -> dict[str, object]:
        """For stage.json and started.json."""
        return {"fingerprint": self.fingerprint, **vars(self)}


@dataclass(frozen=True)
class Decision:
    """Whether a stage runs, and why."""

    stage: str
    action: str
    """``skip``, ``continue``, ``run``, or ``depends`` where an input has to be made first."""
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


def decide(identity: Identity, run_folder: Path, again: str = "") -> Decision:
    """Compare ``identity`` with its stage's folder in ``run_folder`` as it is now.

    ``again`` says why the stage runs even though nothing changed, if it does.
    """
    name, folder = identity.stage, run_folder / identity.stage
    done, started = folder / "stage.json", working_folder(folder) / "started.json"
    reasons: list[str] = []
    if (record := read_record(done)) is not None:
        reasons = differences(record, identity) or _damaged_outputs(record, folder)
        reasons = reasons or [again] * bool(again)
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
    """The first output that is missing or has another size; hashing gigabytes takes long."""
    for name, size in (record.get("output_bytes") or {}).items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return [f"its output {name} is missing"]
        if found != size:
            return [f"its output {name} has {found} bytes instead of {size}"]
    return []


def files_read(outputs: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """The outputs that match a pattern: file → SHA-256.

    A model's card is left out: it holds times, and nothing is computed from it that does not
    follow from the files beside it.
    """
    return {
        name: content
        for name, content in outputs.items()
        if Path(name).name != "card.json" and any(fnmatchcase(name, each) for each in patterns)
    }


def recipe_identity(recipe: Recipe) -> str:
    """All that a recipe's numbers depend on: settings, seed, version, and the files' contents."""
    described = {**recipe.as_dict(), "name": "", "description": ""}
    files: list[str] = []
    for settings in recipe.stages.values():
        files += getattr(settings, "external_files", list)()
    return fingerprint([described, [_content(Path(path)) for path in files], VERSION])


def _content(place: Path) -> str:
    """Fingerprint of a file, or of the files in a folder."""
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
    return fingerprint([[file.name, sha256_file(file)] for file in files])


def external_files(
    stage: str, settings: object, folder: Path
) -> tuple[dict[str, dict[str, object]], list[Problem]]:
    """The state of the files a stage's settings name, and those that cannot be read.

    ``folder`` is the stage's: its records spare hashing files that are as they were.
    """
    try:
        named: list[str] = getattr(settings, "external_files", list)()
    except UserError as error:
        return {}, [Problem(stage, MISSING, error.problem, error.fix)]
    known: dict[str, Any] = {}
    for place in (working_folder(folder) / "started.json", folder / "stage.json"):
        known.update((read_record(place) or {}).get("files") or {})
    states: dict[str, dict[str, object]] = {}
    problems = []
    for path in named:
        try:
            states.update(file_states(Path(path), known))
        except (UserError, OSError) as error:
            reason = error.problem if isinstance(error, UserError) else str(error)
            problems.append(Problem(stage, path, reason, "name a file that can be read"))
    return states, problems


def file_states(path: Path, known: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Size, time and hash of a file, or of every file in a folder.

    The hash of an earlier record (``known``) is used while size and time of change are the same.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return {name: state for file in inside for name, state in file_states(file, known).items()}
    if not path.exists():
        raise UserError("no such file")
    status = path.stat()
    state: dict[str, object] = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    before = known.get(str(path)) or {}
    same = all(before.get(name) == value for name, value in state.items())
    state["sha256"] = before["sha256"] if same else sha256_file(path)
    return {str(path): state}


def differences(record: Mapping[str, Any], identity: Identity) -> list[str]:
    """Why a record is not of ``identity``, in words; empty if it is."""
    if record.get("fingerprint") == identity.fingerprint:
        return []
    reasons = []
    if record.get("format") != identity.format:
        reasons.append(f"this version of lmsmith makes {identity.stage} differently")
    old_settings, new_settings = _flat(record.get("settings") or {}), _flat(identity.settings)
    for key, value in new_settings.items():
        if key not in old_settings:
            reasons.append(f"{key} is new: {as_toml(value)}")
        elif old_settings[key] != value:
            reasons.append(f"{key} changed {as_toml(old_settings[key])} → {as_toml(value)}")
    reasons += [f"{key} is gone" for key in old_settings if key not in new_settings]
    for key in ("seed", "precision"):
        if record.get(key) != (now := getattr(identity, key)):
            reasons.append(f"{key} changed {record.get(key)} → {now}")
    if (before := record.get("engine", "lmsmith")) != identity.engine:
        reasons.append(f"generation.engine changed {before} → {identity.engine}")
    old_files, new_files = record.get("files") or {}, identity.files
    for path in sorted({*old_files, *new_files}):
        old, new = old_files.get(path, {}), new_files.get(path, {})
        if old.get("sha256") != new.get("sha256"):
            reasons.append(f"the file {path} {_became(old, new)}")
    old_inputs: Mapping[str, Any] = record.get("inputs") or {}
    for role in sorted({*old_inputs, *identity.inputs}):
        reasons += _input_differences(old_inputs.get(role), identity.inputs.get(role))
    return reasons or ([] if identity.pending else ["its fingerprint changed"])


def _input_differences(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> list[str]:
    if before is None or now is None or before.get("stage") != now["stage"]:
        return [f"its input {(now or before or {}).get('stage')} {_became(before, now)}"]
    if "files" not in before:
        return ["this version of lmsmith compares the files that a stage reads"]
    if now["files"] is None or before["files"] == now["files"]:
        return []
    names = sorted({*before["files"], *now["files"]})
    changed = [name for name in names if before["files"].get(name) != now["files"].get(name)]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [f"its input {now['stage']} changed ({', '.join(changed[:3])}{more})"]


def remade_inputs(record: Mapping[str, Any], run_folder: Path) -> list[str]:
    """The stages whose outputs are no longer those that the stage of ``record`` read."""
    found = []
    for entry in (record.get("inputs") or {}).values():
        outputs = recorded_outputs(run_folder / entry["stage"])
        read = entry.get("files") or {}
        if outputs and any(outputs.get(name) != content for name, content in read.items()):
            found.append(str(entry["stage"]))
    return found


def _became(before: object, now: object) -> str:
    return "is new" if not before else "is gone" if not now else "changed"


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """``{"optimizer": {"rate": 1}}`` as ``{"optimizer.rate": 1}``; lists likewise."""
    items: list[tuple[Any, object]]
    if isinstance(settings, Mapping) and settings:
        items = list(settings.items())
    elif isinstance(settings, list) and any(isinstance(item, dict | list) for item in settings):
        items = list(enumerate(settings))
    else:
        return {prefix: settings} if prefix else {}
    flat: dict[str, object] = {}
    for name, value in items:
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
