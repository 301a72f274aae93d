"""Stage: train BERT's encoder from random weights to predict masked tokens of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmsmith.core.config import (
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Problem,
    encode,
)
from lmsmith.core.files import read_json
from lmsmith.corpus.batches import generator
from lmsmith.corpus.masking import MaskedBatch, MaskedBatches, Masking
from lmsmith.corpus.rows import read_documents, rows_of_split
from lmsmith.corpus.shards import TokenShards, write_shards
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_decoder, read_model_config, save_model
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.presets import PRESETS
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.stages.pretrain import mixture_shares, pretraining_sources
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import Frame, continues_word
from lmsmith.training.machine import resolve_machine
from lmsmith.training.masked_lm import (
    decoder_guesses,
    encoder_guesses,
    train_masked_lm,
    unigram_guesses,
)
from lmsmith.training.optimiser import OptimiserConfig, Schedule, learning_rate_factors

_COUNTED_AT_ONCE = 1 << 22

HELD_OUT_FRACTION = 0.15
"""Share of held-out tokens that is predicted, as in the paper (Devlin et al. 2018, 3.1)."""

FIRST_SHAPE = "tiny-bert"
"""Preset of the settings of the model that a recipe does not write."""


def _first_shape() -> ModelConfig:
    return replace(PRESETS[FIRST_SHAPE].config, vocabulary_size=0)


@dataclass(frozen=True)
class MaskedLMStageConfig:
    """Settings of masked-token training."""

    model: ModelConfig = field(default_factory=_first_shape)
    """The encoder's shape; what is not written is tiny-bert's, or the preset's. Its vocabulary is
    the tokenizer's."""
    tokens: PositiveInt = 4_000_000
    """Tokens to read in all; more than the corpus has means several passes."""
    batch_tokens: PositiveInt = 8_192
    """Tokens of an update; a multiple of the context."""
    short_context: NonNegativeInt = 0
    """Tokens of a row in the first updates; the last ones read rows of the context. The paper has
    128 of 512 (appendix A.2); among few positions an encoder finds neighbours sooner. 0: no short
    rows."""
    short_share: Fraction = 0.9
    """Share of the updates that read short rows."""
    masked_fraction: Fraction = 0.15
    """Share of the tokens that are predicted."""
    mask_share: Fraction = 0.8
    """Share of those that the mask token replaces."""
    random_share: Fraction = 0.1
    """Share of those that a random token replaces; the rest stay as they are."""
    whole_words: bool = False
    """Hide all tokens of a word or none."""
    next_sentence: bool = True
    """Also learn whether a second sentence follows the first; half of them do."""
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
    """How often held-out text is read."""
    validation_documents: PositiveInt = 64
    """Held-out documents that are read each time."""

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.preset`` out, tiny-bert if there is none; the keys beside it override."""
        model = table.get("model")
        if not isinstance(model, Mapping):
            return table
        name = str(model.get("preset", FIRST_SHAPE))
        if name not in PRESETS:
            return table
        shape = encode(PRESETS[name].config)
        return {**table, "model": {**shape, "vocabulary_size": 0, **model}}

    def check(self) -> list[Problem]:
        """An unknown preset, a decoder's shape, shares above one, a batch that is not whole
        rows."""
        problems, shape = [], self.model
        known = [name for name, preset in PRESETS.items() if preset.config.is_encoder]
        if shape.preset not in ("", *PRESETS):
            expected, fix = f"one of {', '.join(known)}", "`lmsmith models presets` shows them"
            problems.append(Problem("model.preset", shape.preset, expected, fix))
        elif shape.causal:
            fix = f'write preset = "{FIRST_SHAPE}" or another encoder\'s'
            problems.append(Problem("model.causal", True, "false: an encoder sees both sides", fix))
        elif self.next_sentence and not (shape.segments >= 2 and shape.pooler):
            fix = "write segments = 2 and pooler = true in model"
            problems.append(Problem("next_sentence", True, "false without segments", fix))
        if not self.masked_fraction > 0:
            problems.append(Problem("masked_fraction", self.masked_fraction, "above 0"))
        if self.mask_share + self.random_share > 1:
            total = self.mask_share + self.random_share
            problems.append(Problem("mask_share", total, "at most 1 with random_share"))
        context = shape.context
        if context > 0 and self.batch_tokens % context:
            expected = f"a multiple of model.context ({context})"
            fix = f"set it to {max(1, round(self.batch_tokens / context)) * context}"
            problems.append(Problem("batch_tokens", self.batch_tokens, expected, fix))
        if context < 8:
            problems.append(Problem("model.context", context, "8 or more"))
        short = self.short_context
        if short and (not 8 <= short <= context or self.batch_tokens % short):
            expected = f"0, or 8 to {context} (model.context), and a divisor of batch_tokens"
            problems.append(Problem("short_context", short, expected))
        return problems


def run(
    config: MaskedLMStageConfig, inputs: Mapping[str, Path], out: StageFolder
) -> dict[str, float]:
    """Tokenize the documents, train, save ``model/``, and compare on held-out text.

    Where the recipe has pretrain, its decoder predicts the same hidden tokens from the left alone.
    """
    machine = resolve_machine(out.machine)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    frame = Frame.of(tokenizer)
    shape = replace(config.model, vocabulary_size=tokenizer.vocabulary_size)
    steps = max(1, round(config.tokens / config.batch_tokens))

    sources = pretraining_sources(inputs["data"], tokenizer, out / "shards")
    shares = mixture_shares(sources, read_json(inputs["data"] / "mixture.json"))
    shards = [source.shards for source in sources.values()]
    masking = masking_of(config, tokenizer)

    def batches_of(context: int) -> MaskedBatches:
        return MaskedBatches(
            shards,
            masking,
            context,
            config.batch_tokens // context,
            derive_seed(out.seed, "batches"),
            pairs=config.next_sentence,
            shares=shares,
            cls=frame.cls,
            sep=frame.sep,
            pad=frame.pad,
        )

    whole = batches_of(shape.context)
    short = batches_of(config.short_context) if config.short_context else whole
    short_steps = round(config.short_share * steps) if config.short_context else 0

    def batch(step: int) -> MaskedBatch:
        return short.batch(step) if step < short_steps else whole.batch(step - short_steps)

    compared = "decoder" in inputs and is_comparable(inputs["decoder"] / "model", shape, out)
    held_out = held_out_batches(config, inputs["data"], tokenizer, shape.context, out)
    if not held_out:
        out.progress.say(
            "masked_lm: no text is held out (data.splits.validation), so nothing is compared"
        )
    model = MaskedLM(MaskedLMConfig(shape, config.next_sentence))
    model.initialise(torch.Generator().manual_seed(derive_seed(out.seed, "weights")))
    metrics = train_masked_lm(
        model,
        batch,
        config.optimiser,
        learning_rate_factors(config, steps),
        machine,
        out,
        steps=steps,
        batch_tokens=config.batch_tokens,
        fraction=config.masked_fraction,
        held_out=held_out,
        validations=config.validations,
    )
    if held_out:
        found = encoder_guesses(model, held_out, machine)
        counts = target_counts(shards, shape.vocabulary_size, frame)
        guesses = {"masked": found, "unigram": unigram_guesses(counts, held_out)}
        if compared:
            decoder = load_decoder(inputs["decoder"] / "model")
            guesses["decoder"] = decoder_guesses(decoder, held_out, machine)
            metrics["decoder_parameters"] = float(decoder.config.parameters)
        for name, each in guesses.items():
            metrics |= {f"{name}_accuracy": each.accuracy, f"{name}_loss": each.mean_loss}
        metrics["held_out_targets"] = float(found.targets)
    total = sum(source.total_tokens for source in shards)
    metrics |= {
        "parameters": float(model.config.parameters),
        "corpus_tokens": float(total),
        "epochs": steps * config.batch_tokens / total,
        "compiled": float(model.decoder.compiled),
    }
    card = {"stage": "masked_lm", "parents": [], "settings": encode(config), "metrics": metrics}
    save_model(out / "model", model, tokenizer, card)
    return metrics


def is_comparable(decoder: Path, shape: ModelConfig, out: StageFolder) -> bool:
    """Whether a decoder can read the encoder's rows; a warning says why not."""
    theirs = read_model_config(decoder)[1]
    if theirs.vocabulary_size != shape.vocabulary_size:
        out.warn("the decoder of pretrain has another vocabulary, and is not compared")
        return False
    if theirs.context < shape.context:
        out.warn(
            f"the decoder of pretrain reads {theirs.context} tokens and the encoder "
            f"{shape.context}, so they are not compared; make pretrain.model.context as long"
        )
        return False
    return True


def masking_of(config: MaskedLMStageConfig, tokenizer: Tokenizer) -> Masking:
    """How a tokenizer's tokens are hidden."""
    words = [
        token for token in range(tokenizer.vocabulary_size) if token not in tokenizer.control_tokens
    ]
    return Masking(
        Frame.of(tokenizer).mask,
        np.array(words, np.int64),
        np.array(continues_word(tokenizer)),
        config.masked_fraction,
        config.mask_share,
        config.random_share,
        config.whole_words,
    )


def held_out_batches(
    config: MaskedLMStageConfig, data: Path, tokenizer: Tokenizer, context: int, out: StageFolder
) -> list[MaskedBatch]:
    """Held-out rows of one sentence each; every hidden token is the mask, so that none is shown.

    `HELD_OUT_FRACTION` of them is hidden, whatever training hides, so that runs can be compared.
    """
    documents = rows_of_split(read_documents, data / "validation_documents.jsonl")
    texts = [document.text for document in islice(documents, config.validation_documents)]
    encoded = [tokens for tokens in tokenizer.encode_batch(texts) if tokens]
    if not encoded:
        return []
    frame = Frame.of(tokenizer)
    size = max(1, config.batch_tokens // context)
    shards = write_shards(
        out / "held_out", encoded, frame.sep, tokenizer.vocabulary_size, [frame.cls]
    )
    rows = MaskedBatches(
        [shards],
        replace(masking_of(config, tokenizer), fraction=HELD_OUT_FRACTION, masked=1.0, random=0.0),
        context,
        size,
        0,
        cls=frame.cls,
        sep=frame.sep,
        pad=frame.pad,
    )
    spans = rows.spans()
    return [
        rows.rows(spans[start : start + size], generator(derive_seed(out.seed, "held out"), start))
        for start in range(0, len(spans), size)
    ]


def target_counts(
    shards: Sequence[TokenShards], vocabulary_size: int, frame: Frame
) -> npt.NDArray[np.int64]:
    """Occurrences of each token in training; 0 for the frame's, which are never hidden."""
    counts = np.zeros(vocabulary_size, np.int64)
    for source in shards:
        for start in range(0, source.total_tokens, _COUNTED_AT_ONCE):
            part = source.tokens[start : start + _COUNTED_AT_ONCE]
            counts += np.bincount(part, minlength=vocabulary_size)
    counts[[frame.cls, frame.sep]] = 0
    return counts
