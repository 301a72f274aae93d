"""Runs a recipe's stages in order: skips what is done, continues what was cut off.

Whether a stage is done is a matter of its fingerprint, which stands for all that decides its
outputs: its settings, the seed, the precision, the contents of the files that it reads from
stages before it and of those its settings name, and the version of its code's format. A stage
that was interrupted finds its folder as it left it, and continues from its own checkpoints. A
finished stage that runs again works in a folder beside it until it is done.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

from lmsmith.core.config import Problem, SettingsError, encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import (
    disk_full_error,
    remove_partials,
    sha256_file,
    storage_error,
    write_json,
)
from lmsmith.core.progress import QuietProgress, RunProgress
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.core.version import VERSION
from lmsmith.runs.decisions import Decision, decide
from lmsmith.runs.folders import (
    clean_up_stage,
    put_in_place,
    refuse_foreign_folder,
    remove_leftovers,
    remove_stage,
    stage_outputs,
    working_folder,
)
from lmsmith.runs.identity import Identity, external_files, files_read
from lmsmith.runs.locking import locked
from lmsmith.runs.records import (
    read_record,
    recorded_outputs,
    recorded_seconds,
    write_record,
)
from lmsmith.runs.signals import StopSignal, stop_if_requested
from lmsmith.runs.stage_folder import (
    StageFolder,
    advice_on_threads,
    derive_seed,
    describe_hardware,
    describe_versions,
    git_commit,
    reset_peak_memory,
)
from lmsmith.runs.watching import WatchedProgress
from lmsmith.stages import STAGES, Stage

Prepare = Callable[[MachineConfig], dict[str, object]]
"""Makes the process ready for heavy work; returns the choices made, for stage.json."""


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
        stack.enter_context(locked(folder, progress))
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
    files: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    """stage → the state of the files that its settings name"""

    def plan(self, only: str | None) -> list[tuple[Decision, Identity]]:
        """What is to be done with every stage (or with ``only``), as the folder is now."""
        self.read_files()
        found: dict[str, tuple[Decision, Identity]] = {}
        for name in self.stages:
            pending = {each for each, (decision, _) in found.items() if decision.action != "skip"}
            identity = self.identity(name, pending)
            found[name] = decide(identity, self.folder), identity
        if only is None:
            return list(found.values())
        for needed in self.stages[only].inputs(self.recipe.stages).values():
            decision, _ = found[needed]
            if decision.action != "skip":
                raise UserError(
                    f"--only {only}: its input {needed} is not ready ({decision.reason})",
                    f"Run --only {needed} first, or leave --only out.",
                )
        return [found[only]]

    def read_files(self) -> None:
        """The state of the files that the settings name."""
        problems: list[Problem] = []
        for name in self.stages:
            place = self.folder / name
            self.files[name], found = external_files(name, self.recipe.stages[name], place)
            problems += found
        if problems:
            raise SettingsError(problems, self.recipe.name)

    def identity(self, name: str, pending: Collection[str] = ()) -> Identity:
        """A stage's identity; what it reads of stages that are ``pending`` is not known yet."""
        stage = self.stages[name]
        inputs: dict[str, dict[str, object]] = {}
        for role, source in stage.inputs(self.recipe.stages).items():
            outputs = recorded_outputs(self.folder / source)
            files = None if source in pending else files_read(outputs, stage.patterns(role))
            inputs[role] = {"stage": source, "files": files}
        return Identity(
            stage=name,
            format=stage.format,
            settings=encode(self.recipe.stages[name]),
            seed=self.recipe.seed,
            precision=self.recipe.machine.precision,
            inputs=inputs,
            files=self.files[name],
        )

    def run(self, only: str | None) -> dict[str, object]:
        """Do it, stage by stage; a stage is decided on anew once its inputs are made."""
        remove_leftovers(self.folder)
        plan = self.plan(only)
        for _, identity in plan:
            refuse_foreign_folder(self.folder / identity.stage)
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
        for _, planned in plan:
            stop_if_requested()
            identity = self.identity(planned.stage)
            decision = decide(identity, self.folder)
            decisions.append(decision)
            if decision.action == "skip":
                clean_up_stage(self.folder / identity.stage)
                record = read_record(self.folder / identity.stage / "stage.json")
                self.progress.stage_skipped(identity.stage, recorded_seconds(record))
            else:
                self.run_stage(identity, decision)
        return self.summary(decisions)

    def run_stage(self, identity: Identity, decision: Decision) -> None:
        """Run one stage to its end and record it; on a stop, record how far it came."""
        stage, folder = self.stages[identity.stage], self.folder / identity.stage
        if self.machine is None:
            threads = self.recipe.machine.threads
            if self.prepare is None and (advice := advice_on_threads(threads)):
                self.progress.note(f"machine: {advice}")
            self.machine = (self.prepare or _prepare_process)(self.recipe.machine)
        inputs = stage.inputs(self.recipe.stages)
        working = working_folder(folder)
        watched = self.open_stage(identity, decision, working)
        seed = derive_seed(self.recipe.seed, stage.name)
        _seed_generators(seed)
        out = StageFolder(working, seed, self.recipe.machine, watched)
        sources = {role: self.folder / source for role, source in inputs.items()}
        try:
            metrics = stage.function()(self.recipe.stages[stage.name], sources, out)
        except BaseException as error:
            with contextlib.suppress(UserError, OSError):
                watched.save()
            if (fixed := disk_full_error(error, folder)) is not None:
                raise fixed from error
            raise
        self.close_stage(working, folder, watched, metrics)
        self.progress.stage_ends(stage.name, watched.seconds())

    def open_stage(self, identity: Identity, decision: Decision, folder: Path) -> WatchedProgress:
        """Make the folder that the stage works in ready, and begin its record, started.json."""
        before: Mapping[str, Any] = {}
        if decision.action == "continue":
            before = read_record(folder / "started.json") or {}
            remove_partials(folder)
        else:
            remove_stage(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.progress.stage_begins(identity.stage, str(decision))
        reset_peak_memory()
        watched = WatchedProgress(
            self.progress,
            folder / "started.json",
            {
                **identity.as_dict(),
                "started": before.get("started") or _now(),
            },
            seconds_before=recorded_seconds(before),
            peak_before=int(before.get("peak_memory_bytes") or 0),
            warnings=list(before.get("warnings") or []),
        )
        watched.save()
        return watched

    def close_stage(
        self,
        working: Path,
        folder: Path,
        watched: WatchedProgress,
        metrics: Mapping[str, SupportsFloat],
    ) -> None:
        """Record a stage that is done in stage.json, and put its outputs into ``folder``."""
        remove_partials(working)
        outputs = sorted(stage_outputs(working))
        write_record(
            working / "stage.json",
            {
                "status": "done",
                **watched.record(),
                "outputs": {name: sha256_file(working / name) for name in outputs},
                "output_bytes": {name: (working / name).stat().st_size for name in outputs},
                "metrics": {name: _number(value) for name, value in metrics.items()},
                "version": VERSION,
                "git_commit": git_commit(),
                "hardware": describe_hardware(),
                "machine": self.machine,
            },
        )
        put_in_place(working, folder)
        clean_up_stage(folder)

    def summary(self, decisions: Sequence[Decision]) -> dict[str, object]:
        """What the run came to, from the records in the folder."""
        stages: dict[str, dict[str, object]] = {}
        total = 0.0
        for decision in decisions:
            entry: dict[str, object] = {"action": decision.action, "reason": decision.reason}
            record = read_record(self.folder / decision.stage / "stage.json")
            if record is not None:
                for name in ("wall_seconds", "peak_memory_bytes", "metrics", "warnings"):
                    entry[name] = record.get(name)
                total += recorded_seconds(record)
            stages[decision.stage] = entry
        return {
            "folder": str(self.folder),
            "recipe": self.recipe.name,
            "stages": stages,
            "wall_seconds": round(total, 3),
        }


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


def _number(value: SupportsFloat) -> int | float:
    """A plain number of what may be one of numpy's or torch's."""
    return value if type(value) is int else float(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
