"""Train models of several sizes one after another, measure each, keep what is done."""

from __future__ import annotations

import math
import re
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
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_model, save_model
from lmsmith.runs.records import read_record, write_record
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.studies.scale.documents import CONTEXT, StudyBatches, byte_tokenizer
from lmsmith.studies.scale.measuring import measure, parts
from lmsmith.training.language_model import accumulate_gradients, train_language_model
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, learning_rate_factor

DEFAULT_SIZES = "1x32,2x32,2x64,3x96,4x128"
HEAD_WIDTH = 32
MOST_LAYERS, MOST_WIDTH = 48, 2048

FEWEST_STEPS, MOST_STEPS = 100, 6_000
"""Fewest and most steps of a plan by time."""

TRAINING_SHARE = 0.85
"""Share of the minutes for training; the rest is for compiling and measuring."""

OPTIMISER = OptimiserConfig(name="muon", learning_rate=2e-3, matrix_learning_rate=0.02)

FORMAT = 2
"""Changes when the same settings would give other numbers."""


@dataclass(frozen=True)
class Size:
    """Blocks and the width of the residual stream, named ``4x128``."""

    layers: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"

    def config(self, vocabulary_size: int) -> ModelConfig:
        """Rotary positions, RMSNorm, GELU, no biases; heads of 32."""
        return ModelConfig(
            self.layers,
            self.width,
            self.width // HEAD_WIDTH,
            CONTEXT,
            vocabulary_size,
            norm="rms",
            positions="rotary",
            qkv_bias=False,
            attention_output_bias=False,
            ffn_bias=False,
        )


def read_sizes(text: str, vocabulary_size: int) -> tuple[Size, ...]:
    """Sizes of ``2x32,4x128``, the fewest parameters first.

    Raises:
        UserError: one is not of that form or out of range, two are the same, or there is but one.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    sizes = [_read_size(word) for word in words]
    twice = next((size for size in sizes if sizes.count(size) > 1), None)
    if twice:
        raise UserError(f"--sizes: {twice.name} is named twice", "name each size once")
    if len(sizes) < 2:
        raise UserError(
            f"--sizes {text}: a study of scale has two sizes or more", f"e.g. {DEFAULT_SIZES}"
        )
    return tuple(sorted(sizes, key=lambda size: size.config(vocabulary_size).parameters))


def _read_size(word: str) -> Size:
    found = re.fullmatch(r"(\d+)[x×](\d+)", word)
    if not found:
        raise UserError(f"--sizes {word}: not layers x width", f"e.g. --sizes {DEFAULT_SIZES}")
    size = Size(int(found[1]), int(found[2]))
    if not 1 <= size.layers <= MOST_LAYERS:
        raise UserError(f"--sizes {word}: {size.layers} layers", f"1 to {MOST_LAYERS}")
    if size.width % HEAD_WIDTH or not HEAD_WIDTH <= size.width <= MOST_WIDTH:
        raise UserError(
            f"--sizes {word}: the width must be a multiple of {HEAD_WIDTH}, the heads' width, "
            f"at most {MOST_WIDTH}",
            f"e.g. {size.layers}x{max(1, round(size.width / HEAD_WIDTH)) * HEAD_WIDTH}",
        )
    return size


@dataclass(frozen=True)
class ScalePlan:
    """Everything that decides a study's numbers, the machine aside.

    Attributes:
        sizes: of the models, the smallest first.
        steps: updates of each model; all see the same documents.
        rows: of a batch.
        items: documents or questions of each kind that a model is measured on.
        optimiser: Muon for the blocks' matrices, AdamW for the rest.
        warmup, decay_fraction: of the learning rate.
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
    """The plan in a folder, or a new one, written there.

    Args:
        wanted: with 0 steps: as many as the minutes allow on this machine, measured once; a study
            that is continued keeps them.

    Raises:
        UserError: the folder holds a study with other settings.
    """
    path = folder / "plan.json"
    kept = read_record(path)
    choice = {"asked_steps": wanted.steps, "minutes": minutes if wanted.steps == 0 else None}
    if kept is not None:
        said = {**encode(asdict(wanted)), "minutes": choice["minutes"]}
        before = {**kept["plan"], "steps": kept["asked_steps"], "minutes": kept["minutes"]}
        for key, value in said.items():
            if before.get(key) != value:
                raise UserError(
                    f"{folder}: holds a study with other settings "
                    f"({key} was {before.get(key)}, now {value})",
                    "name another --out, or remove that folder",
                )
        return replace(wanted, steps=int(kept["plan"]["steps"]))
    plan = replace(wanted, steps=wanted.steps or _steps_in(minutes, wanted, machine, progress))
    write_record(path, {"plan": encode(asdict(plan)), **choice})
    return plan


def _steps_in(
    minutes: float, plan: ScalePlan, machine: ResolvedMachine, progress: RunProgress
) -> int:
    """Steps that all models can make: the time of a step is the best of a few, eager."""
    seconds = sum(_seconds_of_step(size, plan, machine) for size in plan.sizes)
    steps = int(minutes * 60 * TRAINING_SHARE / seconds)
    progress.note(f"a step of all {len(plan.sizes)} models takes {seconds:.2f} s: {steps:,} steps")
    return max(FEWEST_STEPS, min(MOST_STEPS, steps // 10 * 10))


def _seconds_of_step(size: Size, plan: ScalePlan, machine: ResolvedMachine) -> float:
    decoder = Decoder(size.config(byte_tokenizer().vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    optimiser = Optimiser(machine.put(decoder), plan.optimiser, [decoder.blocks], machine.dtype)
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
    """Train and measure one model in ``folder``, each only once.

    Returns:
        Its shape, its compute, and the results of `measure`.
    """
    settings_of_plan = {**encode(asdict(plan)), "sizes": None}
    identity = fingerprint({"size": size.name, "plan": settings_of_plan})
    kept = read_record(folder / "measured.json")
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
    config, tokens = decoder.config, plan.steps * plan.batch_tokens
    shape = {
        "layers": size.layers,
        "width": size.width,
        "parameters": config.parameters,
        "trained_tokens": tokens,
        "compute": config.training_flops_per_token() * tokens,
    }
    measured = {"model": size.name, **shape, **summary, **found}
    write_record(folder / "measured.json", {"identity": identity, "measured": measured})
    return measured


def _train(
    folder: Path,
    size: Size,
    plan: ScalePlan,
    machine: ResolvedMachine,
    settings: MachineConfig,
    progress: RunProgress,
) -> dict[str, float]:
    tokenizer, batches = byte_tokenizer(), StudyBatches(plan.rows, plan.seed)
    # The same seed for all sizes: they differ in nothing but their size.
    out = StageFolder(folder, derive_seed(plan.seed, "scale"), settings, progress)
    decoder = Decoder(size.config(tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(derive_seed(out.seed, "weights")))
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
        row_tokens=decoder.config.context,
        micro_batch_size=0,
        bytes_per_token=1.0,
        held_out_bits_per_byte=None,
        validations=1,
    )
    card = {"stage": "study scale", "parents": [], "settings": encode(asdict(plan))}
    save_model(folder / "model", decoder, tokenizer, {**card, "metrics": summary})
    return {key: summary[key] for key in ("final_loss", "tokens_per_second", "share_of_peak")}


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
        parameters = size.config(byte_tokenizer().vocabulary_size).parameters
        progress.stage_begins(size.name, f"{parameters:,} parameters")
        measured.append(run_member(folder / size.name, size, plan, machine, settings, progress))
        progress.stage_ends(size.name, time.monotonic() - started)
    return measured
