"""How a recipe's stages run, from raw text to an aligned chat model.

They run in order; a stage that is done is skipped. Its fingerprint says so, which stands for all
that decides its outputs: its settings, the seed, the precision, the contents of the files that it
reads from stages before it and of those its settings name, and the version of its code's format.
A stage that was interrupted continues from its own checkpoints. A finished stage that runs again
works in a folder beside it until it is done.

No stage's module is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from lmsmith.core.recipe import (
    DEVICE_VARIABLE,
    MachineConfig,
    Recipe,
    device_of_environment,
    load_recipe,
    recipe_text,
)
from lmsmith.core.version import VERSION
from lmsmith.runs.folders import (
    clean_up_stage,
    put_in_place,
    refuse_foreign_folder,
    remove_leftovers,
    remove_stage,
    stage_outputs,
    working_folder,
)
from lmsmith.runs.identity import Decision, Identity, decide, external_files, files_read
from lmsmith.runs.integrity import check_inputs, is_whole
from lmsmith.runs.locking import locked
from lmsmith.runs.records import (
    WatchedProgress,
    read_record,
    recorded_outputs,
    recorded_seconds,
    write_record,
)
from lmsmith.runs.redo import Redo
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
from lmsmith.stages.table import FIRST_MODEL, STAGES, Stage

Prepare = Callable[[MachineConfig], dict[str, object]]
"""Makes the process ready for heavy work; returns the choices made, for stage.json."""


def load_stage_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), stages: Sequence[Stage] = STAGES
) -> Recipe:
    """Read and check a recipe made of these stages.

    Raises:
        UserError: no such recipe, not TOML, or the list of all problems in it.
    """
    recipe_text(name_or_path)  # a missing recipe is reported before torch is imported
    types = {stage.name: stage.config_type() for stage in stages}
    needs = {stage.name: tuple(stage.needs.values()) for stage in stages}
    recipe = load_recipe(name_or_path, overrides, types, needs)
    if getattr(recipe.stages.get("data"), "shards", ""):
        loaded = getattr(recipe.stages.get("tokenizer"), "load", "")
        if loaded:
            expected, fix = "data.shards brings its own tokenizer", "leave tokenizer.load out"
            raise SettingsError(
                [Problem("tokenizer.load", loaded, expected, fix)], str(name_or_path)
            )
    tokenizer = recipe.stages.get("tokenizer")
    trained = not getattr(recipe.stages.get("data"), "shards", "") and not getattr(
        tokenizer, "load", ""
    )
    if "masked_lm" in recipe.stages and trained and getattr(tokenizer, "kind", "") == "bpe":
        expected = '"word_piece": masked_lm needs its control tokens'
        problem = Problem("tokenizer.kind", "bpe", expected, 'set it to "word_piece"')
        raise SettingsError([problem], str(name_or_path))
    coefficient = getattr(recipe.stages.get("ppo"), "ptx_coefficient", 0)
    if coefficient and "pretrain" not in recipe.stages:
        expected = "PPO-ptx reads the text of the stage pretrain, but the recipe has no such stage"
        problem = Problem("ppo.ptx_coefficient", coefficient, expected, "set it to 0")
        raise SettingsError([problem], str(name_or_path))
    teachers = [name for name in ("sft", *FIRST_MODEL) if name in recipe.stages]
    if not getattr(recipe.stages.get("distil"), "teacher", "none") and not teachers:
        expected, fix = (
            "a model, or a stage that makes one",
            "name one, or add [pretrain] or [base]",
        )
        raise SettingsError([Problem("distil.teacher", "", expected, fix)], str(name_or_path))
    return recipe


def run_recipe(
    recipe: Recipe,
    folder: Path,
    only: str | None = None,
    dry_run: bool = False,
    progress: RunProgress | None = None,
    stages: Sequence[Stage] = STAGES,
    prepare: Prepare | None = None,
    redo: str | None = None,
) -> dict[str, object]:
    """Run the stages of ``recipe`` that are not done in ``folder``.

    Args:
        only: run just this stage; its inputs must be done and current.
        dry_run: decide, but run nothing.
        prepare: called once, before the first stage that runs; ``lmsmith.training.machine``'s
            `prepare_process` by default.
        redo: make this stage again, and all that depend on it. Each stays until the new one is
            done; a run that is cut off goes on with the rest.

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
    for option, name in (("--only", only), ("--redo", redo)):
        if name is not None and name not in recipe.stages:
            names = ", ".join(stage.name for stage in chosen)
            raise UserError(
                f"{option} {name}: the recipe has no such stage", f"Its stages: {names}."
            )
    if only and redo:
        raise UserError("--only and --redo: one at a time", "leave --only out")
    run = _Run(recipe, folder, {stage.name: stage for stage in chosen}, progress, prepare)
    if dry_run:
        run.read_redo(redo)
        return run.summary([decision for decision, _ in run.plan(only)])
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder, progress))
        stack.enter_context(StopSignal())
        stack.callback(progress.close)
        try:
            return run.run(only, redo)
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
    redo: Redo = field(init=False)

    def read_redo(self, stage: str | None) -> None:
        """What an earlier command was asked to make again and did not, and ``stage``."""
        self.redo = Redo.read(self.folder)
        self.redo.left = [name for name in self.redo.left if name in self.stages]
        if stage is not None:
            if self.redo.goes_on(stage) and is_whole(self.folder / stage):
                self.progress.note(
                    f"{stage} was made again before the run was cut off; now it goes on with "
                    f"{', '.join(self.redo.left)}. Give --redo once more when that is done"
                )
                return
            present = self.recipe.stages
            self.redo.add(stage, {s.name: s.inputs(present).values() for s in self.stages.values()})

    def decide(self, identity: Identity) -> Decision:
        return decide(identity, self.folder, self.redo.reason(identity.stage))

    def plan(self, only: str | None) -> list[tuple[Decision, Identity]]:
        """Decide on every stage (or on ``only``), as the folder is now."""
        problems: list[Problem] = []
        for name in self.stages:
            settings, place = self.recipe.stages[name], self.folder / name
            self.files[name], wrong = external_files(name, settings, place)
            problems += wrong
        if problems:
            raise SettingsError(problems, self.recipe.name)
        found: dict[str, tuple[Decision, Identity]] = {}
        for name in self.stages:
            pending = {each for each, (decision, _) in found.items() if decision.action != "skip"}
            identity = self.identity(name, pending)
            found[name] = self.decide(identity), identity
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
            engine=self.recipe.generation.engine if stage.draws else "lmsmith",
        )

    def run(self, only: str | None, redo: str | None = None) -> dict[str, object]:
        """Run the plan; each stage is decided on again once its inputs are made."""
        self.require_device()
        self.require_engine()
        remove_leftovers(self.folder)
        self.read_redo(redo)
        plan = self.plan(only)
        self.require_rollouts(plan)
        for _, identity in plan:
            refuse_foreign_folder(self.folder / identity.stage)
        about = {"versions": describe_versions(), **_provenance()}
        words = self.recipe.words
        about |= {"command": ["lmsmith", "run", *words]} if words else {}
        write_json(self.folder / "recipe.json", {"recipe": self.recipe.as_dict(), **about})
        self.redo.save()
        self.progress.plan([identity.stage for _, identity in plan])
        decisions = []
        for _, planned in plan:
            stop_if_requested()
            identity = self.identity(planned.stage)
            decision = self.decide(identity)
            decisions.append(decision)
            if decision.action == "skip":
                clean_up_stage(self.folder / identity.stage)
                record = read_record(self.folder / identity.stage / "stage.json")
                self.progress.stage_skipped(identity.stage, recorded_seconds(record))
            else:
                self.run_stage(identity, decision)
                self.redo.done(identity.stage)
        return self.summary(decisions)

    def run_stage(self, identity: Identity, decision: Decision) -> None:
        """Run one stage and record it; on a stop, record how far it came."""
        stage, folder = self.stages[identity.stage], self.folder / identity.stage
        if self.machine is None:
            threads = self.recipe.machine.threads
            if self.prepare is None and (advice := advice_on_threads(threads)):
                self.progress.note(f"machine: {advice}")
            self.machine = (self.prepare or _prepare_process)(self.recipe.machine)
        inputs = stage.inputs(self.recipe.stages)
        for role, source in inputs.items():
            check_inputs(self.folder / source, stage.patterns(role))
        working = working_folder(folder)
        watched = self.open_stage(identity, decision, working)
        seed = derive_seed(self.recipe.seed, stage.name)
        _seed_generators(seed)
        out = StageFolder(working, seed, self.recipe.machine, watched, self.recipe.generation)
        sources = {role: self.folder / source for role, source in inputs.items()}
        try:
            with _naming_full_disk(folder), _with_others(stage, working):
                metrics = stage.function()(self.recipe.stages[stage.name], sources, out)
        except BaseException:
            with contextlib.suppress(UserError, OSError):
                watched.save()
            raise
        self.close_stage(working, folder, watched, metrics)
        self.progress.stage_ends(stage.name, watched.seconds())

    def require_device(self) -> None:
        """Refuse a device that is named and is not here, before anything runs."""
        named, given = self.recipe.machine.device, device_of_environment()
        if named != "auto" and given not in ("auto", named):
            counts = f"machine.device = {named} counts"
            self.progress.note(f"{counts}; {DEVICE_VARIABLE}={given} is for machine.device = auto")
        if named != "auto" or given != "auto":
            from lmsmith.device import choose_device  # imports torch

            choose_device(named)

    def require_rollouts(self, plan: Sequence[tuple[Decision, Identity]]) -> None:
        """Refuse more processes than a stage that will run has rollouts, before anything runs."""
        count = processes()
        for decision, identity in plan:
            rollouts = getattr(self.recipe.stages[identity.stage], "rollouts", count)
            if decision.action != "skip" and rollouts < count:
                named = f"{identity.stage}.rollouts = {rollouts}"
                raise UserError(
                    f"{named} for {count} processes: each needs one",
                    "raise it, or start fewer processes",
                )

    def require_engine(self) -> None:
        """Refuse an engine that is not here, before anything runs."""
        if self.recipe.generation.engine == "vllm" and any(
            stage.draws for stage in self.stages.values()
        ):
            from lmsmith.device import choose_device
            from lmsmith.generation.vllm_server import require_vllm
            from lmsmith.generation.weight_transfer import choose_route

            require_vllm(self.recipe.generation)
            choose_route(self.recipe.generation, choose_device(self.recipe.machine.device))

    def open_stage(self, identity: Identity, decision: Decision, folder: Path) -> WatchedProgress:
        """Prepare the folder that the stage works in, and begin its record, started.json."""
        before: Mapping[str, Any] = {}
        if decision.action == "continue":
            before = read_record(folder / "started.json") or {}
            remove_partials(folder)
        else:
            remove_stage(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.progress.stage_begins(identity.stage, str(decision))
        reset_peak_memory()
        self.reset_device_memory()
        started = before.get("started") or datetime.now(UTC).isoformat(timespec="seconds")
        about = {**identity.as_dict(), "started": started}
        watched = WatchedProgress(self.progress, folder / "started.json", about, before)
        watched.save()
        return watched

    def close_stage(
        self,
        working: Path,
        folder: Path,
        watched: WatchedProgress,
        metrics: Mapping[str, SupportsFloat],
    ) -> None:
        """Record a finished stage in stage.json, and put its outputs into ``folder``."""
        remove_partials(working)
        outputs = sorted(stage_outputs(working))
        write_record(
            working / "stage.json",
            {
                "status": "done",
                **watched.record(),
                "outputs": {name: sha256_file(working / name) for name in outputs},
                "output_bytes": {name: (working / name).stat().st_size for name in outputs},
                "metrics": {  # plain numbers of what may be numpy's or torch's
                    name: value if type(value) is int else float(value)
                    for name, value in metrics.items()
                },
                "version": VERSION,
                **_provenance(),
                "machine": self.machine,
                **self.device_memory(),
            },
        )
        put_in_place(working, folder)
        clean_up_stage(folder)

    def reset_device_memory(self) -> None:
        if "torch" in sys.modules and self.prepare is None:
            from lmsmith.device import choose_device, reset_device_memory

            reset_device_memory(choose_device(self.recipe.machine.device))

    def device_memory(self) -> dict[str, object]:
        """The most memory of a GPU that the stage took; nothing on the processor."""
        if "torch" not in sys.modules or self.prepare is not None:
            return {}
        from lmsmith.device import choose_device, device_memory

        found = device_memory(choose_device(self.recipe.machine.device))
        return {} if found is None else {"peak_device_memory_bytes": found}

    def summary(self, decisions: Sequence[Decision]) -> dict[str, object]:
        """The run's result, from the records in the folder."""
        stages, total = {}, 0.0
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


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    """Inside, a write that fails for want of room or permission is a user's mistake."""
    try:
        yield
    except BaseException as error:
        if (fixed := disk_full_error(error, folder)) is not None:
            raise fixed from error
        raise


@contextlib.contextmanager
def _with_others(stage: Stage, working: Path) -> Iterator[None]:
    """Call the other processes of the run, if there are any, to a stage that they take part in."""
    if not stage.together or not processes_started():
        yield
        return
    from lmsmith.training import parallel  # imports torch

    parallel.tell({"stage": stage.name, "working": str(working)})
    with parallel.together():
        yield


def processes() -> int:
    """Processes of the run, as torchrun has started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_started() -> bool:
    """Whether torchrun has started this process with others."""
    return processes() > 1


def work_along(recipe: Recipe, folder: Path, stages: Sequence[Stage] = STAGES) -> None:
    """Take part in the stages that the first process calls to, until it has no more.

    Such a process reads what the first writes. It writes its parts of rankings and evaluation.

    Raises:
        Interrupted: a signal asked to stop.
        PeerLost: another process has ended.
    """
    from lmsmith.training import parallel
    from lmsmith.training.machine import prepare_process

    by_name = {stage.name: stage for stage in stages}
    prepare_process(recipe.machine)
    with StopSignal():
        while (call := parallel.hear()) is not None:
            stage = by_name[call["stage"]]
            seed = derive_seed(recipe.seed, stage.name)
            _seed_generators(seed)
            working, quiet = Path(call["working"]), QuietProgress()
            out = StageFolder(working, seed, recipe.machine, quiet, recipe.generation)
            inputs = stage.inputs(recipe.stages)
            sources = {role: folder / source for role, source in inputs.items()}
            parted = contextlib.suppress(parallel.Parted)
            with parted, _naming_full_disk(working), parallel.together():
                stage.function()(recipe.stages[stage.name], sources, out)


def _prepare_process(config: MachineConfig) -> dict[str, object]:
    from lmsmith.training.machine import matrix_peak, prepare_process  # imports torch

    machine = prepare_process(config)
    peak = matrix_peak(machine)
    return {**vars(machine), "processes": processes(), "peak_gflops": round(peak, 1)}


def _seed_generators(seed: int) -> None:
    """Seed the process-wide generators: no stage depends on what ran before it."""
    random.seed(seed)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def _provenance() -> dict[str, object]:
    return {"git_commit": git_commit(), "hardware": describe_hardware()}
