"""Train the models one after another, measure each, keep what is done."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.core.progress import RunProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_model, save_model
from lmsmith.runs.records import read_record, write_record
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.studies.scale.documents import CONTEXT, StudyBatches, byte_tokenizer
from lmsmith.studies.scale.family import Size
from lmsmith.studies.scale.measuring import measure, parts
from lmsmith.training.language_model import accumulate_gradients, train_language_model
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, learning_rate_factor

FEWEST_STEPS, MOST_STEPS = 100, 6_000
"""Fewest and most steps of a plan by time."""

TRAINING_SHARE = 0.85
"""Share of the minutes for training; the rest is for compiling and measuring."""

OPTIMISER = OptimiserConfig(name="muon", learning_rate=2e-3, matrix_learning_rate=0.02)

PLAN_FILE, MEASURED_FILE = "plan.json", "measured.json"
FORMAT = 2
"""Changes when the same settings would give other numbers."""


@dataclass(frozen=True)
class ScalePlan:
    """What decides a study's numbers, the machine aside.

    Attributes:
        sizes: of the models, the smallest first.
        steps: updates of each model; all see the same documents.
        rows: of a batch.
        items: documents or questions of each kind that a model is measured on.
        seed: of weights, documents and items.
        precision: of matrix products.
        optimiser: Muon for the blocks' matrices, AdamW for the rest.
        warmup, decay_fraction: of the learning rate.
        format: of the documents.
    """

    sizes: tuple[Size, ...]
    steps: int
    rows: int
    items: int
    seed: int
    precision: str
    optimiser: OptimiserConfig = OPTIMISER
    warmup: int = 40
    decay_fraction: float = 0.4
    format: int = FORMAT

    @property
    def batch_tokens(self) -> int:
        return self.rows * CONTEXT


def settle_plan(
    folder: Path,
    wanted: ScalePlan,
    minutes: float,
    machine: ResolvedMachine,
    progress: RunProgress,
) -> ScalePlan:
    """The plan that stands in a folder, or a new one, written there.

    Args:
        wanted: with 0 steps: as many as the minutes allow on this machine, which are measured
            once; a study that is continued keeps them.

    Raises:
        UserError: the folder holds a study with other settings.
    """
    path = folder / PLAN_FILE
    kept = read_record(path)
    said = encode(asdict(wanted))
    if kept is not None:
        asked = {**said, "minutes": minutes if wanted.steps == 0 else None}
        before = {**kept["plan"], "steps": kept["asked_steps"], "minutes": kept["minutes"]}
        different = [key for key, value in asked.items() if before.get(key) != value]
        if different:
            key = different[0]
            raise UserError(
                f"{folder}: holds a study with other settings "
                f"({key} was {before.get(key)}, now {asked[key]})",
                "name another --out, or remove that folder",
            )
        return _with_steps(wanted, int(kept["plan"]["steps"]))
    steps = wanted.steps or _steps_in(minutes, wanted, machine, progress)
    plan = _with_steps(wanted, steps)
    record = {
        "plan": encode(asdict(plan)),
        "asked_steps": wanted.steps,
        "minutes": minutes if wanted.steps == 0 else None,
    }
    write_record(path, record)
    return plan


def _with_steps(plan: ScalePlan, steps: int) -> ScalePlan:
    return replace(plan, steps=steps)


def _steps_in(
    minutes: float, plan: ScalePlan, machine: ResolvedMachine, progress: RunProgress
) -> int:
    """How many steps all models can make: the time of a step is the best of a few, eager."""
    seconds = sum(_seconds_of_step(size, plan, machine) for size in plan.sizes)
    steps = int(minutes * 60 * TRAINING_SHARE / seconds)
    progress.note(f"a step of all {len(plan.sizes)} models takes {seconds:.2f} s: {steps:,} steps")
    return max(FEWEST_STEPS, min(MOST_STEPS, steps // 10 * 10))


def _seconds_of_step(size: Size, plan: ScalePlan, machine: ResolvedMachine) -> float:
    decoder = Decoder(size.config(byte_tokenizer().vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    optimiser = Optimiser(decoder, plan.optimiser, matrices=[decoder.blocks])
    decoder.attend_explicitly()
    batches = StudyBatches(plan.rows, plan.seed)
    best = math.inf
    for step in range(4):
        started = time.perf_counter()
        accumulate_gradients(decoder, batches.batch(step), machine)
        optimiser.step(1.0)
        best = min(best, time.perf_counter() - started)
    return best


def run_member(
    folder: Path,
    size: Size,
    plan: ScalePlan,
    machine: ResolvedMachine,
    settings: MachineConfig,
    progress: RunProgress,
) -> dict[str, Any]:
    """Train and measure one model in ``folder``; what is done there is not done again.

    Returns:
        Its shape, compute and what `measure` found.
    """
    path, identity = folder / MEASURED_FILE, _identity(size, plan)
    kept = read_record(path)
    if kept is not None and kept.get("identity") == identity:
        return dict(kept["measured"])
    trained = read_record(folder / "trained.json")
    if trained is None or trained.get("identity") != identity:
        summary = _train(folder, size, plan, machine, settings, progress)
        write_record(folder / "trained.json", {"identity": identity, "summary": summary})
    else:
        summary = dict(trained["summary"])
    decoder = load_model(folder / "model")
    assert isinstance(decoder, Decoder)
    progress.begin(f"measuring {size.name}", parts, "parts")
    found = measure(decoder, machine, items=plan.items, seed=plan.seed, on_part=progress.update)
    progress.end()
    measured = {"model": size.name, **_shape(size, plan), **summary, **found}
    write_record(path, {"identity": identity, "measured": measured})
    return measured


def _identity(size: Size, plan: ScalePlan) -> str:
    return fingerprint({"size": size.name, "plan": {**encode(asdict(plan)), "sizes": None}})


def _shape(size: Size, plan: ScalePlan) -> dict[str, Any]:
    config = size.config(byte_tokenizer().vocabulary_size)
    tokens = plan.steps * plan.batch_tokens
    return {
        "layers": size.layers,
        "width": size.width,
        "parameters": config.parameters,
        "trained_tokens": tokens,
        "compute": config.training_flops_per_token() * tokens,
    }


def _train(
    folder: Path,
    size: Size,
    plan: ScalePlan,
    machine: ResolvedMachine,
    settings: MachineConfig,
    progress: RunProgress,
) -> dict[str, float]:
    tokenizer = byte_tokenizer()
    # The same seed for all sizes: they differ in nothing but their size.
    out = StageFolder(folder, derive_seed(plan.seed, "scale"), settings, progress)
    decoder = Decoder(size.config(tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(derive_seed(out.seed, "weights")))
    batches = StudyBatches(plan.rows, plan.seed)
    summary = train_language_model(
        decoder,
        batches.batch,
        plan.optimiser,
        lambda step: learning_rate_factor(
            "warmup_stable_decay", step, plan.steps, plan.warmup, 0.0, plan.decay_fraction
        ),
        machine,
        out,
        description=f"training {size.name}",
        steps=plan.steps,
        batch_tokens=plan.batch_tokens,
        micro_batch_size=0,
        bytes_per_token=1.0,
        held_out_bits_per_byte=None,
        validations=1,
    )
    card = {"stage": "study scale", "parents": [], "settings": encode(asdict(plan))}
    save_model(folder / "model", decoder, tokenizer, {**card, "metrics": summary})
    kept = ("final_loss", "tokens_per_second", "share_of_peak")
    return {name: summary[name] for name in kept}


def _parameters_in_words(size: Size) -> str:
    return f"{size.config(byte_tokenizer().vocabulary_size).parameters:,} parameters"


def run_study(
    folder: Path,
    plan: ScalePlan,
    machine: ResolvedMachine,
    settings: MachineConfig,
    progress: RunProgress,
) -> list[dict[str, Any]]:
    """All models of the plan, the smallest first."""
    measured = []
    progress.plan([size.name for size in plan.sizes])
    for size in plan.sizes:
        started = time.monotonic()
        progress.stage_begins(size.name, _parameters_in_words(size))
        measured.append(run_member(folder / size.name, size, plan, machine, settings, progress))
        progress.stage_ends(size.name, time.monotonic() - started)
    return measured
