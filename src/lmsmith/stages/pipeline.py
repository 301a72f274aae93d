"""Runs a recipe's stages in order: skips what is done, continues what was cut off.

Whether a stage is done is a matter of its fingerprint, which stands for all that decides its
outputs: its settings, the seed, the precision, its inputs' fingerprints, the contents of the
files its settings name, and the version of its code's format. A stage that was interrupted
finds its folder as it left it, and continues from its own checkpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

import lmsmith
from lmsmith.core.config import MISSING, Problem, encode, report_problems
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import (
    fingerprint,
    finite,
    read_json,
    remove_partials,
    sha256_file,
    storage_error,
    write_json,
)
from lmsmith.core.progress import QuietProgress, RunProgress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.core.runs import (
    StageFolder,
    derive_seed,
    describe_hardware,
    describe_versions,
    git_commit,
    peak_memory_bytes,
    reset_peak_memory,
)
from lmsmith.core.signals import StopSignal, stop_if_requested, stop_requested
from lmsmith.stages import STAGES, Stage

_SAVE_TIME_EVERY = 5.0  # seconds; at most so much of the wall time is lost by a kill -9
_NOT_OUTPUTS = {"stage.json", "started.json", "metrics.jsonl"}


Prepare = Callable[[MachineConfig], dict[str, object]]
"""Makes the process ready for heavy work; returns the choices made, for stage.json."""


@dataclass(frozen=True)
class Decision:
    """What is to be done with a stage, and why."""

    stage: str
    action: str
    """``skip``, ``continue`` or ``run``."""
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


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
    inputs: dict[str, dict[str, str]]
    """role → {"stage", "fingerprint"}"""
    files: dict[str, dict[str, object]]
    """external file → {"sha256", "bytes", "modified_ns"}"""

    @property
    def fingerprint(self) -> str:
        # What files hold counts, not where they are: a demo's data moves with its environment.
        contents = [file["sha256"] for file in self.files.values()]
        return fingerprint({**vars(self), "files": contents})

    def as_dict(self) -> dict[str, object]:
        """For stage.json and started.json."""
        return {"fingerprint": self.fingerprint, **vars(self)}


def run_recipe(
    recipe: Recipe,
    folder: Path,
    only: str | None = None,
    dry_run: bool = False,
    progress: RunProgress | None = None,
    stages: Sequence[Stage] = STAGES,
    prepare: Prepare | None = None,
) -> dict[str, object]:
    """Run the stages of ``recipe`` that are not done in ``folder``.

    Args:
        only: run just this stage; its inputs must be done and current.
        dry_run: decide and tell, but run nothing.
        progress: who watches; nobody by default.
        stages: the table of stages.
        prepare: makes the process ready for heavy work, once, before the first stage that
            runs, and returns its choices; ``lmsmith.training.machine`` by default.

    Returns:
        ``{"folder", "recipe", "stages": {name: {"action", "reason", …}}, "wall_seconds"}``;
        for stages that are done also their ``metrics``, ``wall_seconds`` and
        ``peak_memory_bytes``.

    Raises:
        UserError: bad input, a full disk, or another run at work in ``folder``.
        Interrupted: a signal asked to stop, and everything worth keeping is saved.
    """
    progress = progress or QuietProgress()
    chosen = [stage for stage in stages if stage.name in recipe.stages]
    if only is not None and only not in recipe.stages:
        names = ", ".join(stage.name for stage in chosen)
        raise UserError(f"--only {only}: the recipe has no such stage", f"Its stages: {names}.")
    run = _Run(recipe, folder, {stage.name: stage for stage in chosen}, progress, prepare)
    if dry_run:
        return run.summary([decision for decision, _ in run.plan(only)])
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(folder, progress))
        stack.enter_context(StopSignal())
        stack.callback(progress.close)
        try:
            return run.run(only)
        except OSError as error:
            raise storage_error(Path(error.filename or folder), error) from error


@dataclass
class _Run:
    recipe: Recipe
    folder: Path
    stages: dict[str, Stage]
    progress: RunProgress
    prepare: Prepare | None
    machine: dict[str, object] | None = None

    def plan(self, only: str | None) -> list[tuple[Decision, Identity]]:
        """What is to be done with every stage (or with ``only``), as the folder is now."""
        identities = self.identities()
        decisions = {name: self.decide(identity) for name, identity in identities.items()}
        if only is None:
            return [(decisions[name], identities[name]) for name in identities]
        for needed in self.stages[only].inputs(self.recipe.stages).values():
            if decisions[needed].action != "skip":
                raise UserError(
                    f"--only {only}: its input {needed} is not ready ({decisions[needed].reason})",
                    f"Run --only {needed} first, or leave --only out.",
                )
        return [(decisions[only], identities[only])]

    def run(self, only: str | None) -> dict[str, object]:
        """Do it, stage by stage; a stage is decided on anew once its inputs are made."""
        remove_partials(self.folder, inside=False)
        for left in self.folder.glob(".*.removed"):
            shutil.rmtree(left, ignore_errors=True)
        plan = self.plan(only)
        for _, identity in plan:
            _refuse_foreign_folder(self.folder / identity.stage)
        write_json(
            self.folder / "recipe.json",
            {
                "recipe": self.recipe.as_dict(),
                "versions": describe_versions(),
                "git_commit": git_commit(),
                "hardware": describe_hardware(),
            },
        )
        self.progress.plan([identity.stage for _, identity in plan])
        decisions = []
        for _, identity in plan:
            stop_if_requested()
            decision = self.decide(identity)
            decisions.append(decision)
            if decision.action == "skip":
                _clean_up(self.folder / identity.stage)
                record = _read_record(self.folder / identity.stage / "stage.json")
                self.progress.stage_skipped(identity.stage, _seconds(record))
            else:
                self.run_stage(identity, decision)
        return self.summary(decisions)

    def identities(self) -> dict[str, Identity]:
        """Every stage's identity, in order, each made from those of its inputs."""
        made: dict[str, Identity] = {}
        problems: list[Problem] = []
        for name, stage in self.stages.items():
            settings = self.recipe.stages[name]
            files, found = self.external_files(name, settings)
            problems += found
            made[name] = Identity(
                stage=name,
                format=stage.format,
                settings=encode(settings),
                seed=self.recipe.seed,
                precision=self.recipe.machine.precision,
                inputs={
                    role: {"stage": source, "fingerprint": made[source].fingerprint}
                    for role, source in stage.inputs(self.recipe.stages).items()
                },
                files=files,
            )
        if problems:
            raise report_problems(problems, self.recipe.name)
        return made

    def external_files(
        self, stage: str, settings: object
    ) -> tuple[dict[str, dict[str, object]], list[Problem]]:
        """The state of the files a stage's settings name, and those that cannot be read."""
        list_files = getattr(settings, "external_files", None)
        try:
            named: list[str] = list(list_files()) if list_files is not None else []
        except UserError as error:
            return {}, [Problem(stage, MISSING, error.problem, error.mend)]
        known: dict[str, Any] = {}
        for record_name in ("started.json", "stage.json"):
            record = _read_record(self.folder / stage / record_name)
            known.update((record or {}).get("files") or {})
        states: dict[str, dict[str, object]] = {}
        problems = []
        for path in named:
            try:
                states.update(_file_states(Path(path), known))
            except (UserError, OSError) as error:
                reason = error.problem if isinstance(error, UserError) else str(error)
                problems.append(Problem(stage, path, reason, "name a file that can be read"))
        return states, problems

    def decide(self, identity: Identity) -> Decision:
        """Skip, continue or run ``identity``'s stage, as its folder is now."""
        folder = self.folder / identity.stage
        name, done, started = identity.stage, folder / "stage.json", folder / "started.json"
        record = _read_record(done)
        if record is not None:
            reasons = _differences(record, identity) or self._damage(record, identity)
            if not reasons:
                return Decision(name, "skip", "done, nothing changed")
            return Decision(name, "run", "; ".join(reasons))
        if done.exists():
            return Decision(name, "run", "its stage.json is damaged, so it is made again")
        record = _read_record(started)
        if record is None:
            damaged = "its started.json is damaged, so it begins anew"
            return Decision(name, "run", damaged if started.exists() else "not run yet")
        reasons = _differences(record, identity) or self._other_inputs(record)
        if not reasons:
            return Decision(name, "continue", "was interrupted, continues where it was saved")
        return Decision(name, "run", "; ".join(reasons))

    def _damage(self, record: Mapping[str, Any], identity: Identity) -> list[str]:
        """What became of the outputs since; sizes only, since hashing gigabytes takes long."""
        folder = self.folder / identity.stage
        for name, size in (record.get("output_bytes") or {}).items():
            try:
                found = (folder / name).stat().st_size
            except OSError:
                return [f"its output {name} is missing"]
            if found != size:
                return [f"its output {name} has {found} bytes instead of {size}"]
        return self._other_inputs(record)

    def _other_inputs(self, record: Mapping[str, Any]) -> list[str]:
        """Inputs made again since, from the same settings but with another result."""
        reasons = []
        for source, content in (record.get("input_contents") or {}).items():
            now = self.content_of(source)
            if now is not None and now != content:
                reasons.append(f"its input {source} came out differently")
        return reasons

    def content_of(self, stage: str) -> str | None:
        """What stands for the outputs of a stage that is done, byte for byte."""
        record = _read_record(self.folder / stage / "stage.json")
        return None if record is None else fingerprint(record["outputs"])

    def run_stage(self, identity: Identity, decision: Decision) -> None:
        """Run one stage to its end and record it; on a stop, record how far it came."""
        stage, folder = self.stages[identity.stage], self.folder / identity.stage
        if self.machine is None:
            self.machine = (self.prepare or _prepare_process)(self.recipe.machine)
        before: Mapping[str, Any] = {}
        if decision.action == "continue":
            before = _read_record(folder / "started.json") or {}
            remove_partials(folder)
        else:
            _remove_stage(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.progress.stage_begins(identity.stage, str(decision))
        inputs = stage.inputs(self.recipe.stages)
        reset_peak_memory()
        watched = _WatchedProgress(
            self.progress,
            folder / "started.json",
            {
                **identity.as_dict(),
                "input_contents": {source: self.content_of(source) for source in inputs.values()},
                "started": before.get("started") or _now(),
            },
            seconds_before=_seconds(before),
            peak_before=int(before.get("peak_memory_bytes") or 0),
            warnings=list(before.get("warnings") or []),
        )
        watched.save()
        seed = derive_seed(self.recipe.seed, stage.name)
        _seed_generators(seed)
        out = StageFolder(folder, seed, self.recipe.machine, watched)
        sources = {role: self.folder / source for role, source in inputs.items()}
        try:
            metrics = stage.function()(self.recipe.stages[stage.name], sources, out)
        except BaseException as error:
            with contextlib.suppress(UserError, OSError):
                watched.save()
            if (mended := _disk_full(error, folder)) is not None:
                raise mended from error
            raise
        remove_partials(folder)
        outputs = sorted(_outputs(folder))
        write_json(
            folder / "stage.json",
            _sealed(
                {
                    "status": "done",
                    **watched.record(),
                    "outputs": {name: sha256_file(folder / name) for name in outputs},
                    "output_bytes": {name: (folder / name).stat().st_size for name in outputs},
                    "metrics": {name: _number(value) for name, value in metrics.items()},
                    "version": lmsmith.__version__,
                    "git_commit": git_commit(),
                    "hardware": describe_hardware(),
                    "machine": self.machine,
                }
            ),
        )
        _clean_up(folder)
        self.progress.stage_ends(stage.name, watched.seconds())

    def summary(self, decisions: Sequence[Decision]) -> dict[str, object]:
        """What the run came to, from the records in the folder."""
        stages: dict[str, dict[str, object]] = {}
        total = 0.0
        for decision in decisions:
            entry: dict[str, object] = {"action": decision.action, "reason": decision.reason}
            record = _read_record(self.folder / decision.stage / "stage.json")
            if record is not None:
                for name in ("wall_seconds", "peak_memory_bytes", "metrics", "warnings"):
                    entry[name] = record.get(name)
                total += _seconds(record)
            stages[decision.stage] = entry
        return {
            "folder": str(self.folder),
            "recipe": self.recipe.name,
            "stages": stages,
            "wall_seconds": round(total, 3),
        }


@dataclass
class _WatchedProgress:
    """Hands a stage's progress on, and keeps started.json's wall time, so that a kill costs none.

    Warnings are kept too, for stage.json.
    """

    progress: RunProgress
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
        write_json(self.path, _sealed(self.record()))

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
        self.progress.say(text)

    def note(self, text: str) -> None:
        self.progress.note(text)


def _prepare_process(config: MachineConfig) -> dict[str, object]:
    from lmsmith.training.machine import measure_matrix_peak, prepare_process  # imports torch

    machine = prepare_process(config)
    peak = measure_matrix_peak(machine.precision)
    return {**machine.as_dict(), "peak_gflops": round(peak, 1)}


def _seed_generators(seed: int) -> None:
    """Seed the process-wide generators, so that no stage depends on what ran before it."""
    random.seed(seed)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def _differences(record: Mapping[str, Any], identity: Identity) -> list[str]:
    """Why a record of a stage is not of ``identity``, in words; empty if it is."""
    if record.get("fingerprint") == identity.fingerprint:
        return []
    reasons = []
    if record.get("format") != identity.format:
        reasons.append(f"this version of lmsmith makes {identity.stage} differently")
    old_settings = _flat(record.get("settings") or {})
    for key, value in (new_settings := _flat(identity.settings)).items():
        if key not in old_settings:
            reasons.append(f"{key} is new: {_show(value)}")
        elif old_settings[key] != value:
            reasons.append(f"{key} changed {_show(old_settings[key])} → {_show(value)}")
    reasons += [f"{key} is gone" for key in old_settings if key not in new_settings]
    if record.get("seed") != identity.seed:
        reasons.append(f"seed changed {record.get('seed')} → {identity.seed}")
    if record.get("precision") != identity.precision:
        reasons.append(f"precision changed {record.get('precision')} → {identity.precision}")
    old_files, new_files = record.get("files") or {}, identity.files
    for path in sorted({*old_files, *new_files}):
        old, new = old_files.get(path, {}), new_files.get(path, {})
        if old.get("sha256") != new.get("sha256"):
            how = "is new" if not old else "is gone" if not new else "changed"
            reasons.append(f"the file {path} {how}")
    old_inputs: Mapping[str, Any] = record.get("inputs") or {}
    for role in sorted({*old_inputs, *identity.inputs}):
        before, now = old_inputs.get(role), identity.inputs.get(role)
        if before != now:
            name = (now or before or {}).get("stage")
            how = "is new" if before is None else "is gone" if now is None else "changed"
            reasons.append(f"its input {name} {how}")
    return reasons or ["its fingerprint changed"]


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """``{"optimizer": {"rate": 1}}`` as ``{"optimizer.rate": 1}``; lists likewise."""
    items: list[tuple[str, object]]
    if isinstance(settings, Mapping) and settings:
        items = [(str(name), value) for name, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(item, dict | list) for item in settings):
        items = [(str(number), value) for number, value in enumerate(settings)]
    else:
        return {prefix: settings} if prefix else {}
    flat: dict[str, object] = {}
    for name, value in items:
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else name))
    return flat


def _show(value: object) -> str:
    return str(Problem("", value, "")).removeprefix(" = ").removesuffix(": ")


def _file_states(path: Path, known: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Size, time and hash of a file, or of every file in a folder.

    A hash from an earlier record is used again while size and time of change are the same.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return {name: state for file in inside for name, state in _file_states(file, known).items()}
    if not path.exists():
        raise UserError("no such file")
    status = path.stat()
    state: dict[str, object] = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    before = known.get(str(path)) or {}
    same = all(before.get(name) == value for name, value in state.items())
    state["sha256"] = before["sha256"] if same else sha256_file(path)
    return {str(path): state}


def _sealed(record: Mapping[str, object]) -> dict[str, object]:
    """``record`` with a checksum of itself, so that a flipped bit is noticed."""
    plain: dict[str, object] = encode(dict(record))
    return {**plain, "checksum": _checksum(plain)}


def _checksum(record: Mapping[str, object]) -> str:
    return fingerprint(finite({key: item for key, item in record.items() if key != "checksum"}))


def _read_record(path: Path) -> dict[str, Any] | None:
    """A stage.json or started.json; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError:
        return None
    if not isinstance(record, dict) or record.get("checksum") != _checksum(record):
        return None
    return record


def _seconds(record: Mapping[str, Any] | None) -> float:
    return float((record or {}).get("wall_seconds") or 0.0)


def _outputs(folder: Path) -> Iterator[str]:
    """The files a stage made, as paths relative to its folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "checkpoints" and str(name) not in _NOT_OUTPUTS:
            yield name.as_posix()


def _clean_up(folder: Path) -> None:
    """Remove what a stage that is done needs no longer."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _remove_stage(folder: Path) -> None:
    """Remove a stage's folder; renamed first, so that a kill leaves no half of it in place."""
    if folder.exists():
        removed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
        shutil.rmtree(removed)


def _refuse_foreign_folder(folder: Path) -> None:
    """Never remove what lmsmith did not make: such a folder has neither of its records."""
    if folder.is_dir():
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if not names or names & {"stage.json", "started.json"}:
            return
    elif not folder.exists():
        return
    raise UserError(
        f"{folder}: is in the way; lmsmith did not make it", "Choose another --folder, or move it."
    )


def _disk_full(error: BaseException, folder: Path) -> BaseException | None:
    """The message for a write that failed in a library, which may wrap the system's error."""
    if isinstance(error, OSError) and error.errno is not None:
        mended = storage_error(Path(error.filename or folder), error)
        return mended if isinstance(mended, UserError) else None
    if isinstance(error, UserError | Interrupted | KeyboardInterrupt):
        return None
    text = str(error)
    for number in (28, 122, 27):  # ENOSPC, EDQUOT, EFBIG; Rust's words or the C library's
        if f"os error {number})" in text or os.strerror(number) in text:
            mended = storage_error(folder, OSError(number, os.strerror(number)))
            return mended if isinstance(mended, UserError) else None
    return None


def _number(value: SupportsFloat) -> int | float:
    """A plain number of what may be one of numpy's or torch's."""
    return value if type(value) is int else float(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_locks: set[int] = set()  # descriptors of the run folders this process has locked


def _close_locks_in_child() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


# A forked worker that outlives a killed run would otherwise keep the folder locked.
os.register_at_fork(after_in_child=_close_locks_in_child)


@contextlib.contextmanager
def _locked(folder: Path, progress: RunProgress) -> Iterator[None]:
    """Hold the run folder's lock, which the system releases whatever way the process ends."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage_error(path, error) from error
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise UserError(
                f"{folder}: another run is at work here (process {holder or 'unknown'})",
                "Wait for its end, stop it, or choose another --folder.",
            ) from None
        except OSError as error:  # some network file systems know no locks
            progress.say(f"{folder} cannot be locked ({error.strerror}): start no second run in it")
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _locks:
            _locks.discard(descriptor)
            os.close(descriptor)
