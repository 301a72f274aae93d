"""Stage: train a decoder from random weights to predict the next token of plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.corpus.mixture import MIXTURE_FILE, SHARDS_FOLDER, PretrainingBatches
from lmsmith.corpus.rows import read_documents, rows_of_split
from lmsmith.corpus.shards import TokenShards, write_shards
from lmsmith.evaluation.methods.perplexity import bits_per_byte
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.presets import PRESETS
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.language_model import train_language_model
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig, Schedule, learning_rate_factor


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pretraining.

    Attributes:
        model: the decoder's shape; its vocabulary is the tokenizer's.
        tokens: to train on in all; more than the corpus has means several passes.
        batch_tokens: an update's; a multiple of the context.
        micro_batch_size: rows computed at a time, 0 for a whole batch; fewer need less memory
            (gradient accumulation) and change nothing else.
        optimiser: AdamW, or Muon for the blocks' matrices.
        schedule, warmup_steps, final_lr_fraction, decay_fraction: of the learning rate;
            ``final_lr_fraction`` is the factor at the last step.
        validations: how often held-out text is looked at along the way.
        validation_documents: how many held-out documents are looked at.
        checkpoint_activations: compute each block's insides again in the backward pass instead
            of keeping them.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    tokens: int = 4_000_000
    batch_tokens: int = 8_192
    micro_batch_size: int = 0
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(name="muon"))
    schedule: Schedule = "warmup_stable_decay"
    warmup_steps: int = 20
    final_lr_fraction: float = 0.0
    decay_fraction: float = 0.5
    validations: int = 8
    validation_documents: int = 64
    checkpoint_activations: bool = False

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.preset`` out; the keys beside it override it."""
        model = table.get("model")
        if not isinstance(model, Mapping) or str(model.get("preset")) not in PRESETS:
            return table
        shape = encode(PRESETS[model["preset"]].config)
        return {**table, "model": {**shape, "vocabulary_size": 0, **model}}

    def check(self) -> list[tuple[str, object, str, str]]:
        """Values out of range and contradictions, as (key, value, expected, fix)."""
        problems: list[tuple[str, object, str, str]] = []
        if self.model.preset not in ("", *PRESETS):
            expected, fix = f"one of {', '.join(PRESETS)}", "`lmsmith models presets` shows them"
            problems.append(("model.preset", self.model.preset, expected, fix))
        for key in ("tokens", "batch_tokens", "validations", "validation_documents"):
            if getattr(self, key) < 1:
                problems.append((key, getattr(self, key), "a positive number", f"raise {key}"))
        for key in ("micro_batch_size", "warmup_steps"):
            if getattr(self, key) < 0:
                problems.append((key, getattr(self, key), "0 or more", f"raise {key}"))
        for key in ("final_lr_fraction", "decay_fraction"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                problems.append((key, getattr(self, key), "between 0 and 1", f"change {key}"))
        context = self.model.context
        if context > 0 and self.batch_tokens % context:
            nearest = max(1, round(self.batch_tokens / context)) * context
            problems.append(
                (
                    "batch_tokens",
                    self.batch_tokens,
                    f"a multiple of model.context ({context})",
                    f"set it to {nearest}",
                )
            )
        return problems


def run(config: PretrainConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Tokenize the documents, train, save ``model/``."""
    machine = resolve_machine(out.machine)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    shape = replace(config.model, vocabulary_size=tokenizer.vocabulary_size)
    steps = max(1, round(config.tokens / config.batch_tokens))

    sources = tokenize_sources(inputs["data"] / "documents.jsonl", tokenizer, out / SHARDS_FOLDER)
    total_tokens = sum(source.shards.total_tokens for source in sources.values())
    total_bytes = sum(source.text_bytes for source in sources.values())
    shares = mixture_shares(sources, read_json(inputs["data"] / "mixture.json"))
    write_json(out / MIXTURE_FILE, shares)
    batches = PretrainingBatches(
        [source.shards for source in sources.values()],
        shares,
        context=shape.context,
        batch_size=config.batch_tokens // shape.context,
        seed=derive_seed(out.seed, "batches"),
    )
    held_out = [
        document.text
        for document in islice(
            rows_of_split(read_documents, inputs["data"] / "validation_documents.jsonl"),
            config.validation_documents,
        )
    ]

    if not held_out:
        out.progress.say(
            "pretrain: no text is held out (data.splits.validation), so nothing says whether it "
            "overfits"
        )
    decoder = Decoder(shape)
    decoder.initialise(torch.Generator().manual_seed(derive_seed(out.seed, "weights")))
    decoder.checkpoint_activations = config.checkpoint_activations
    if not machine.compiler:
        out.progress.say("pretrain: no C++ compiler found, so nothing is compiled (eager mode)")
    summary = train_language_model(
        decoder,
        batches.batch,
        config.optimiser,
        lambda index: learning_rate_factor(
            config.schedule,
            index,
            steps,
            config.warmup_steps,
            config.final_lr_fraction,
            config.decay_fraction,
        ),
        machine,
        out,
        description="pretrain",
        steps=steps,
        batch_tokens=config.batch_tokens,
        micro_batch_size=config.micro_batch_size,
        bytes_per_token=total_bytes / total_tokens,
        held_out_bits_per_byte=(
            partial(bits_per_byte, decoder, tokenizer, held_out, machine) if held_out else None
        ),
        validations=config.validations,
        more_steps="raise pretrain.tokens, or lower pretrain.batch_tokens",
    )
    metrics = summary | {
        "parameters": float(shape.parameters),
        "corpus_tokens": float(total_tokens),
        "corpus_bytes": float(total_bytes),
        "epochs": steps * config.batch_tokens / total_tokens,
        "compiled": float(decoder.compiled),
    }
    card = {"stage": "pretrain", "parents": [], "settings": encode(config), "metrics": metrics}
    save_model(out / "model", decoder, tokenizer, card)
    return metrics


@dataclass(frozen=True)
class Source:
    """One source of documents: its token shards, and the UTF-8 bytes they stand for."""

    shards: TokenShards
    text_bytes: int


def tokenize_sources(path: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Source]:
    """Token shards of each source in a file of documents, by its name, written below ``folder``."""
    texts: dict[str, list[str]] = {}
    for document in rows_of_split(read_documents, path):
        texts.setdefault(document.source, []).append(document.text)
    if not texts:
        raise UserError(
            f"{path} holds no documents", "give the data stage more text: one document is enough"
        )
    sources: dict[str, Source] = {}
    for number, (name, documents) in enumerate(sorted(texts.items())):
        shards = write_shards(
            folder / f"{number:03d}",
            tokenizer.encode_batch(documents),
            tokenizer.end_of_text,
            tokenizer.vocabulary_size,
            tokenizer.document_start,
        )
        sources[name] = Source(shards, sum(len(text.encode()) for text in documents))
    return sources


def mixture_shares(sources: Mapping[str, Source], weights: object) -> list[float]:
    """Share of rows from each source: its weight (1 where none is given) times its size."""
    known = weights if isinstance(weights, dict) else {}
    return [
        float(known.get(name, 1.0)) * source.shards.total_tokens for name, source in sources.items()
    ]
