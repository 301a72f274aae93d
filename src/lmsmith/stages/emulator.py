"""Stage: an emulator of a model, on which others tune its adapters (Xiao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.resolve import card_of_sampling, resolve
from lmsmith.core.config import (
    NOT_A_SETTING,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    encode,
)
from lmsmith.core.files import beside, is_there
from lmsmith.corpus.sources import ROWS_OR_TEXT, files_of
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import EMULATOR_KEY, save_model
from lmsmith.models.offsite import make_emulator, train_only_middle
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.data import DataConfig, DocumentSource, Splits
from lmsmith.stages.data import run as run_data
from lmsmith.stages.distil import DistilConfig, Lesson, compare
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.distillation import Divergence, StateError
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig, Schedule
from lmsmith.training.student import MatchedStates

SPLITS = Splits(demonstrations=0, comparisons=0, prompts=0, judge=0, test=0.05, validation=0.05)
"""Shares of the texts that are held out."""


@dataclass(frozen=True)
class EmulatorConfig:
    """Settings of an emulator for offsite-tuning."""

    model: str = "smollm2-135m"
    """The full model: a registered name, or the path of a model."""
    adapter_layers: PositiveInt = 2
    """The first and the last so many layers are the adapters."""
    keep_layers: PositiveInt = 8
    """Layers that the emulator has of those between the adapters, evenly spaced."""
    texts: tuple[str, ...] = ()
    """Text files (.txt, .jsonl), folders or globs; the layers between the adapters learn from these
    to stand for all that are left out. Empty: they stay as they are."""
    state_weight: NonNegativeFloat = 30.0
    """Weight of the error of the hidden states behind the layers between the adapters."""
    state_error: StateError = "relative"
    """``mse``: the mean squared difference from the full model's states (Xiao et al. 2023, section
    3.3); ``relative`` divides that of each position by the mean square of its state."""
    teacher_weight: Fraction = 0.0
    """α of the other part of the loss, α T² KL + (1 − α) × next-token loss."""
    divergence: Divergence = "forward_kl"
    """``forward_kl``, KL(full model ‖ emulator), or ``reverse_kl``, the other way round."""
    temperature: PositiveFloat = 1.0
    """T: both distributions are softmax(logits / T) in the KL."""
    tokens: PositiveInt = 1_000_000
    """Tokens to learn from in all, padding included; more than there are means several passes."""
    batch_tokens: PositiveInt = 4_096
    """Tokens of an update; a multiple of a row's."""
    max_length: NonNegativeInt = 512
    """Tokens of a row; 0 allows the model's context."""
    micro_batch_size: NonNegativeInt = 0
    """Rows computed at a time, 0 for a whole batch."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=1e-4))
    """The optimiser of the layers between the adapters."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 20
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.05
    """Factor of the peak learning rate at the last update."""
    validations: PositiveInt = 4
    """How often the loss on held-out text is measured; the weights with the lowest are kept."""
    validation_texts: PositiveInt = 64
    """Held-out texts that are read each time."""
    test_texts: Annotated[int, msgspec.Meta(ge=2)] = 100
    """Texts that the emulator is measured on at the end, beside the full model."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's, where they exist."""

    def check(self) -> list[Problem]:
        """No model."""
        fix = "see `lmsmith models ls`"
        return [] if self.model else [Problem("model", "", "a model's name or path", fix)]

    def external_files(self) -> list[str]:
        texts = [file for each in self.texts for file in files_of(self.place(each), ROWS_OR_TEXT)]
        return [str(resolve(self.place(self.model)).path), *map(str, texts)]

    def place(self, word: str) -> str:
        """The path that a word means beside the recipe, or the word."""
        path = beside(self.folder, word)
        return path if is_there(path) else word

    def as_distil(self) -> DistilConfig:
        """The settings of its distillation."""
        same = {
            name: getattr(self, name)
            for name in (
                "teacher_weight", "divergence", "temperature", "tokens", "batch_tokens",
                "max_length", "micro_batch_size", "optimiser", "schedule", "warmup_steps",
                "final_lr_fraction", "validations", "validation_texts", "test_texts",
            )
        }  # fmt: skip
        return DistilConfig(keep_layers=self.keep_layers, compare=False, **same)


def run(config: EmulatorConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Drop layers of the full model, distil what is left between the adapters, save ``model/``.

    Raises:
        UserError: the model has too few layers, or the texts are none.
    """
    read = read_model(config.place(config.model))
    full, tokenizer = read.decoder.requires_grad_(False), read.tokenizer
    emulator, about = make_emulator(full, config.adapter_layers, config.keep_layers)
    metrics = {
        "layers": float(emulator.config.layers),
        "parameters": float(emulator.config.parameters),
        "full_layers": float(full.config.layers),
        "full_parameters": float(full.config.parameters),
    }
    if config.texts:
        metrics |= distil(config, full, emulator, tokenizer, out)
    else:
        out.warn("no texts are given, so the layers that are kept do not learn to stand for all")
    card: dict[str, Any] = {"stage": out.name, **card_of_sampling(read.source)}
    card |= {"settings": encode(replace(config, model=Path(config.model).name, texts=()))}
    more = {EMULATOR_KEY: asdict(about)}
    save_model(out / "model", emulator, tokenizer, {**card, "metrics": metrics}, more=more)
    return metrics


def distil(
    config: EmulatorConfig, full: Decoder, emulator: Decoder, tokenizer: Tokenizer, out: StageFolder
) -> dict[str, float]:
    """Teach the layers between the adapters, in place; bits per byte before, after, and of the
    full model."""
    sources = tuple(DocumentSource(config.place(each)) for each in config.texts)
    data = replace(out, path=out.checkpoints / "data")
    data.path.mkdir(parents=True, exist_ok=True)
    run_data(DataConfig(documents=sources, splits=SPLITS), {}, data)
    machine = resolve_machine(out.machine)
    lesson = Lesson(config.as_distil(), data.path, full, tokenizer, machine, out)
    material = lesson.own_text()
    source = lesson.source(material.rows)
    untaught = deepcopy(emulator)
    train_only_middle(emulator, config.adapter_layers)
    matched = MatchedStates(
        full,
        full.config.layers - config.adapter_layers,
        emulator.config.layers - config.adapter_layers,
        config.state_weight,
        config.state_error,
    )
    objective = lesson.config.objective()
    metrics = lesson.train(emulator, material, source, objective, out, matched)
    models = {"": emulator, "undistilled_": untaught, "full_": full}
    metrics |= compare(models, lesson.test(), out.progress)
    return {**metrics, "rows": float(material.rows.count)}
