"""Stage: train a decoder from random weights to predict the next token of plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lmsmith.catalogue.reading import load_any_tokenizer, same_tokens
from lmsmith.core.config import Fraction, NonNegativeInt, PositiveInt, Problem, encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.corpus.batches import SHARDS_FOLDER, PretrainingBatches, write_mixture
from lmsmith.corpus.finished import BUILD_AGAIN, CORPUS_SHARDS_FILE
from lmsmith.corpus.read_ahead import read_ahead
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
from lmsmith.training.optimiser import OptimiserConfig, Schedule, learning_rate_factors
from lmsmith.training.parallel import from_leader, team


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pretraining."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The decoder's shape; its vocabulary is the tokenizer's."""
    tokens: PositiveInt = 4_000_000
    """Tokens to train on in all; more than the corpus has means several passes."""
    batch_tokens: PositiveInt = 8_192
    """Tokens of an update; a multiple of the context."""
    micro_batch_size: NonNegativeInt = 0
    """Rows computed at a time, 0 for a whole batch. Fewer need less memory (gradient accumulation)
    and change nothing else."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(name="muon"))
    """AdamW, or Muon for the blocks' matrices."""
    schedule: Schedule = "warmup_stable_decay"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 20
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.0
    """Factor of the peak learning rate at the last update."""
    decay_fraction: Fraction = 0.5
    """Share of all updates over which ``warmup_stable_decay`` lowers the learning rate."""
    validations: PositiveInt = 8
    """How often the loss on held-out text is measured."""
    validation_documents: PositiveInt = 64
    """Held-out documents that are read each time."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.preset`` out; the keys beside it override it."""
        model = table.get("model")
        if not isinstance(model, Mapping) or str(model.get("preset")) not in PRESETS:
            return table
        shape = encode(PRESETS[model["preset"]].config)
        return {**table, "model": {**shape, "vocabulary_size": 0, **model}}

    def check(self) -> list[Problem]:
        """An unknown preset, and a batch that is not whole rows."""
        problems = []
        if self.model.preset not in ("", *PRESETS):
            expected, fix = f"one of {', '.join(PRESETS)}", "`lmsmith models presets` shows them"
            problems.append(Problem("model.preset", self.model.preset, expected, fix))
        if self.model.is_encoder:
            fix = "pretrain makes decoders; the stage masked_lm makes encoders (`lmsmith run bert`)"
            problems.append(Problem("model", "an encoder's shape", "a decoder's", fix))
        context = self.model.context
        if context > 0 and self.batch_tokens % context:
            expected = f"a multiple of model.context ({context})"
            fix = f"set it to {max(1, round(self.batch_tokens / context)) * context}"
            problems.append(Problem("batch_tokens", self.batch_tokens, expected, fix))
        return problems


def run(config: PretrainConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Tokenize the documents, train, save ``model/``."""
    machine = resolve_machine(out.machine)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    shape = replace(config.model, vocabulary_size=tokenizer.vocabulary_size)
    steps = max(1, round(config.tokens / config.batch_tokens))

    sources = pretraining_sources(inputs["data"], tokenizer, out / SHARDS_FOLDER)
    total_tokens = sum(source.shards.total_tokens for source in sources.values())
    total_bytes = sum(source.text_bytes for source in sources.values())
    shares = mixture_shares(sources, read_json(inputs["data"] / "mixture.json"))
    if team().leads:
        own = sum(source.place is None for source in sources.values())
        places = [s.place for s in sources.values() if s.place is not None]
        write_mixture(out.path, shares[:own], dict(zip(places, shares[own:], strict=True)))
    batches = PretrainingBatches(
        [source.shards for source in sources.values()],
        shares,
        shape.context,
        config.batch_tokens // shape.context,
        derive_seed(out.seed, "batches"),
        team().rows,
    )
    validation = rows_of_split(read_documents, inputs["data"] / "validation_documents.jsonl")
    held_out = [document.text for document in islice(validation, config.validation_documents)]
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
    with read_ahead(batches, steps) as batch:
        summary = train_language_model(
            decoder,
            batch,
            config.optimiser,
            learning_rate_factors(config, steps),
            machine,
            out,
            description="pretrain",
            steps=steps,
            batch_tokens=config.batch_tokens,
            row_tokens=shape.context,
            micro_batch_size=config.micro_batch_size,
            bytes_per_token=total_bytes / total_tokens,
            held_out_bits_per_byte=(
                partial(bits_per_byte, tokenizer=tokenizer, texts=held_out, machine=machine)
                if held_out
                else None
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
    """Token shards of a source of documents, and the bytes of its text in UTF-8."""

    shards: TokenShards
    text_bytes: int
    place: Path | None = None
    """Where the shards are, if a corpus that was built before has them."""


def pretraining_sources(data: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Source]:
    """The sources of the data stage's folder: its documents, then those of a finished corpus.

    Args:
        folder: the documents' token shards are written below it.

    Raises:
        UserError: there is neither, or the corpus has another tokenizer.
    """
    documents, corpus = data / "documents.jsonl", data / CORPUS_SHARDS_FILE
    if not corpus.is_file():
        return shared_sources(documents, tokenizer, folder)
    sources = shared_sources(documents, tokenizer, folder) if documents.is_file() else {}
    built: Any = read_json(corpus)
    if not same_tokens(load_any_tokenizer(str(data / built["tokenizer"])), tokenizer):
        raise UserError(
            "data.shards: the corpus has another tokenizer than the model",
            "Build it with [shards] tokenizer = the model's folder or name.",
        )
    for name, about in built["sources"].items():
        place = data.absolute() / built["folder"] / name
        sources[name] = Source(TokenShards.load(place, BUILD_AGAIN), about["bytes"], place)
    return sources


def tokenize_sources(path: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Source]:
    """Token shards of each source in a file of documents, by its name, written below ``folder``."""
    texts: dict[str, list[str]] = {}
    for document in rows_of_split(read_documents, path):
        texts.setdefault(document.source, []).append(document.text)
    if not texts:
        fix = "give the data stage more text: one document is enough"
        raise UserError(f"{path} holds no documents", fix)
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


def shared_sources(path: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Source]:
    """`tokenize_sources` by the first of several processes; the others read what it wrote."""

    def make() -> list[tuple[str, str, int]]:
        sources = tokenize_sources(path, tokenizer, folder)
        names = sorted(place.name for place in folder.iterdir())
        pairs = zip(sources.items(), names, strict=True)
        return [(source, name, each.text_bytes) for (source, each), name in pairs]

    found = from_leader(make)
    return {source: Source(TokenShards.load(folder / name), size) for source, name, size in found}


def mixture_shares(sources: Mapping[str, Source], weights: object) -> list[float]:
    """Share of rows from each source: its weight (1 by default) times its size."""
    known = weights if isinstance(weights, dict) else {}
    return [
        float(known.get(name, 1.0)) * source.shards.total_tokens for name, source in sources.items()
    ]
