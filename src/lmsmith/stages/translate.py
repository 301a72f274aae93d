"""Stage: train the Transformer on sentences in two languages (Vaswani et al. 2017)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmsmith.core.config import (
    NOT_A_SETTING,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    encode,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, write_json, write_jsonl
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.parallel import EncodedPair, Pair, PairBatches, make_batch, read_parallel
from lmsmith.evaluation.methods.answers import corpus_bleu
from lmsmith.generation.beam import BeamSettings
from lmsmith.generation.translation import PAPER_BEAMS, Translator
from lmsmith.models.adapters import TrainedState
from lmsmith.models.batching import length_batches
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import save_model
from lmsmith.models.presets import TRANSFORMERS
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.loop import BestWeights, few_steps_warning, rise_warning, run_steps
from lmsmith.training.machine import ResolvedMachine, matrix_peak, resolve_machine
from lmsmith.training.optimiser import (
    Optimiser,
    OptimiserConfig,
    Schedule,
    learning_rate_factors,
)
from lmsmith.training.translation import pair_loss, pair_loss_sum

VALIDATION = "validation/loss"

HELD_OUT, MOST_HELD_OUT = 0.05, 1000
"""Share of the pairs, and most of them, that are held out where no validation files are named."""

SAMPLES, DRAWN = 24, 4
"""Translations in samples.jsonl; how many of them with their attention."""


@dataclass(frozen=True)
class TranslateConfig:
    """Settings of a translator's training."""

    source: str = ""
    """Sentences to translate, one a line; plain text or .gz."""
    target: str = ""
    """Their translations, line by line."""
    validation_source: str = ""
    """Sentences that are not learnt, for the loss along the way and BLEU at the end; a part of the
    pairs is held out if it is left out."""
    validation_target: str = ""
    """Their translations."""
    vocabulary_size: PositiveInt = 8_000
    """Tokens of the byte-level BPE that both languages share."""
    model: ModelConfig = field(default_factory=lambda: TRANSFORMERS["tiny-transformer"].config)
    """Blocks of each side; its vocabulary is the tokenizer's. A longer sentence than its context is
    left out."""
    decoder_layers: NonNegativeInt = 0
    """Blocks of the decoder; 0 means as many as the encoder has."""
    epochs: PositiveFloat = 20.0
    """Passes over the pairs."""
    batch_tokens: PositiveInt = 4_096
    """Source tokens of an update, and target tokens, padding included; the paper has 25,000."""
    label_smoothing: FractionBelowOne = 0.1
    """Share of the target's probability that all tokens have (section 5.4)."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=1e-3, beta2=0.98, epsilon=1e-9, weight_decay=0.0
        )
    )
    """The optimiser; the paper's peak learning rate is 1/√(width × warmup_steps)."""
    schedule: Schedule = "inverse_sqrt"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 4_000
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.0
    """Factor of the peak learning rate at the last update; not read by ``inverse_sqrt``."""
    decay_fraction: Fraction = 0.5
    """Share of all updates over which ``warmup_stable_decay`` lowers the learning rate."""
    validations: PositiveInt = 10
    """How often the loss on the validation pairs is measured; the weights with the lowest are
    kept."""
    beam: PositiveInt = 4
    """Beams of the validation's translations; 1 is greedy."""
    length_penalty: NonNegativeFloat = 0.6
    """α of the beams' length penalty (Wu et al. 2016, equation 14)."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's."""

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``model.preset`` out, the tiny one by default; the keys beside it override it."""
        model = table.get("model", {})
        if not isinstance(model, Mapping):
            return table
        preset = TRANSFORMERS.get(str(model.get("preset", "tiny-transformer")))
        if preset is None:
            return table
        return {**table, "model": {**encode(preset.config), "vocabulary_size": 0, **model}}

    def check(self) -> list[Problem]:
        """Missing files, an unknown preset, and parts that the model has not."""
        problems = []
        for name in ("source", "target"):
            if not getattr(self, name):
                fix = f"--set translate.{name}=FILE: sentences, one a line"
                problems.append(Problem(name, "", "a text file", fix))
        if bool(self.validation_source) != bool(self.validation_target):
            fix = "name both, or neither: then a part of the pairs is held out"
            name = "validation_target" if self.validation_source else "validation_source"
            problems.append(Problem(name, "", "a file beside the other", fix))
        if self.model.preset not in ("", *TRANSFORMERS):
            expected, fix = f"one of {', '.join(TRANSFORMERS)}", "`lmsmith models presets`"
            problems.append(Problem("model.preset", self.model.preset, expected, fix))
        return problems + EncoderDecoderConfig(self.model, self.decoder_layers).check()

    def external_files(self) -> list[str]:
        return [self.place(name) for name in self._named()]

    def _named(self) -> list[str]:
        names = (self.source, self.target, self.validation_source, self.validation_target)
        return [name for name in names if name]

    def place(self, name: str) -> str:
        return beside(self.folder, name)

    def beams(self) -> BeamSettings:
        return replace(PAPER_BEAMS, width=self.beam, length_penalty=self.length_penalty)


def run(config: TranslateConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Learn a joint vocabulary, train, save ``model/``, translate the validation sentences."""
    machine = resolve_machine(out.machine)
    corpus_bleu(["a"], ["a"])  # says now, not after the training, that sacrebleu is missing
    train, held_out, counts = read_pairs(config, out)
    out.progress.begin("training the tokenizer", 1, "vocabulary")
    texts = (text for pair in train for text in pair)
    tokenizer = Tokenizer.train(texts, config.vocabulary_size)
    out.progress.end()
    model = make_model(config, tokenizer, out.seed)
    encoded, left_out = encode_pairs(train, tokenizer, model.config)
    validation, _ = encode_pairs(held_out, tokenizer, model.config)
    if not encoded:
        fix = f"raise {out.name}.model.context, or give shorter sentences"
        raise UserError(f"no sentence fits the context of {config.model.context} tokens", fix)
    if not validation:
        where = config.validation_source or "the part that is held out"
        raise UserError(
            f"{where}: no validation pair fits the context of {config.model.context} tokens",
            f"raise {out.name}.model.context, or give shorter validation sentences",
        )
    if left_out:
        out.warn(
            f"{left_out:,} of {len(train):,} pairs are longer than the context of "
            f"{config.model.context} tokens, and are left out"
        )
    metrics = train_model(config, model, encoded, validation, machine, out)
    metrics |= counts | {
        "pairs": float(len(encoded)),
        "pairs_too_long": float(left_out),
        "parameters": float(model.config.parameters),
        "vocabulary_size": float(tokenizer.vocabulary_size),
    }
    card = {"stage": out.name, "parents": [], "settings": encode(config), "metrics": metrics}
    save_model(out / "model", model, tokenizer, card)  # whatever goes wrong with the measuring
    metrics |= measure_bleu(config, Translator(model, tokenizer, machine), held_out, out)
    save_model(out / "model", model, tokenizer, card)
    return metrics


def read_pairs(
    config: TranslateConfig, out: StageFolder
) -> tuple[list[Pair], list[Pair], dict[str, float]]:
    """Pairs to learn from, pairs to measure on (none of them in both), and counts."""
    train, empty = read_parallel(*(Path(config.place(n)) for n in (config.source, config.target)))
    if config.validation_source:
        names = (config.validation_source, config.validation_target)
        held_out, _ = read_parallel(*(Path(config.place(name)) for name in names))
    else:
        count = max(1, min(MOST_HELD_OUT, round(HELD_OUT * len(train))))
        chosen = np.random.default_rng(derive_seed(out.seed, "held out")).permutation(len(train))
        held_out = [train[place] for place in sorted(chosen[:count])]
    known = set(held_out)
    kept = [pair for pair in train if pair not in known]
    if not kept:
        fix = "give more sentences, or other validation files"
        raise UserError("every pair is a validation pair too: none is left to learn from", fix)
    if empty:
        out.warn(f"{empty:,} pairs with an empty side are left out")
    held = float(len(train) - len(kept))
    counts = {"pairs_empty": float(empty), "pairs_held_out": held}
    return kept, held_out, counts | {"validation_pairs": float(len(held_out))}


def make_model(config: TranslateConfig, tokenizer: Tokenizer, seed: int) -> EncoderDecoder:
    """A new model for this tokenizer; its decoder starts with the end token."""
    shape = replace(config.model, vocabulary_size=tokenizer.vocabulary_size)
    end = tokenizer.end_of_text
    model = EncoderDecoder(EncoderDecoderConfig(shape, config.decoder_layers, end, end))
    model.initialise(torch.Generator().manual_seed(derive_seed(seed, "weights")))
    return model


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, shape: EncoderDecoderConfig
) -> tuple[list[EncodedPair], int]:
    """Tokens of the pairs that fit the context, and how many do not."""
    end, sides = [shape.end_token], zip(*pairs, strict=True)
    sources, targets = ([each + end for each in tokenizer.encode_batch(side)] for side in sides)
    encoded = [EncodedPair(*pair) for pair in zip(sources, targets, strict=True)]
    fit = [pair for pair in encoded if max(map(len, pair)) <= shape.model.context]
    return fit, len(encoded) - len(fit)


def train_model(
    config: TranslateConfig,
    model: EncoderDecoder,
    pairs: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    machine: ResolvedMachine,
    out: StageFolder,
) -> dict[str, float]:
    """Train it in place, and keep the weights with the lowest loss on held-out pairs."""
    start = model.config.start_token
    seed = derive_seed(out.seed, "batches")
    batches = PairBatches(pairs, config.batch_tokens, start, seed)
    steps = max(1, round(config.epochs * batches.per_epoch))
    out.warn(few_steps_warning(steps, f"raise {out.name}.epochs, or add sentences"))
    groups = length_batches([max(map(len, pair)) for pair in held_out], config.batch_tokens)
    measured = [make_batch([held_out[place] for place in group], start) for group in groups]
    optimiser = Optimiser(
        machine.put(model),
        config.optimiser,
        [model.encoder.blocks, model.decoder_blocks],
        machine.dtype,
    )
    best, peak = BestWeights(model), matrix_peak(machine)
    factors = learning_rate_factors(config, steps)
    torch.manual_seed(derive_seed(out.seed, "dropout"))

    def step(index: int) -> Mapping[str, float]:
        started = time.perf_counter()
        batch = batches.batch(index)
        targets = int((batch.targets_bt != NO_TARGET).sum())
        model.train()
        with machine.autocast():
            loss = pair_loss_sum(model, batch, config.label_smoothing) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        factor = factors(index)
        gradient_norm = optimiser.step(factor)
        seconds = time.perf_counter() - started
        rows = len(batch.targets_bt)
        flops = rows * model.config.training_flops((batch.tokens - targets) / rows, targets / rows)
        return {
            "loss": loss.item(),
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "target_tokens": targets,
            "tokens_per_second": batch.tokens / seconds,
            "share_of_peak": min(1.0, flops / seconds / 1e9 / peak),
        }

    def validate(done: int) -> dict[str, float]:
        loss = pair_loss(model, measured, machine)
        best.offer((-loss,), done)
        return {VALIDATION: loss}

    run_steps(
        steps=steps,
        step=step,
        state={"model": TrainedState(model), "optimiser": optimiser, "best": best},
        out=out,
        description=out.name,
        shown=("loss", VALIDATION, "tokens_per_second", "share_of_peak"),
        evaluate=validate if measured else None,
        evaluate_every=max(1, steps // config.validations),
    )
    best.restore()
    model.eval()
    rows = read_metrics(out.metrics_log().path)
    looks = [(int(row["step"]), row[VALIDATION]) for row in rows if VALIDATION in row]
    out.warn(rise_warning("loss per token", looks, best.step))
    found = {
        "steps": float(steps),
        "epochs": steps / batches.per_epoch,
        "final_loss": rows[-1]["loss"],
        "best_step": float(best.step if best.weights else steps),
    }
    for name in ("tokens_per_second", "share_of_peak"):
        found[name] = statistics.median(row[name] for row in rows)
    if looks:
        loss = min(loss for _, loss in looks)
        found |= {"validation_loss": loss, "validation_perplexity": math.exp(loss)}
    return found


def measure_bleu(
    config: TranslateConfig, translator: Translator, pairs: Sequence[Pair], out: StageFolder
) -> dict[str, float]:
    """BLEU of the validation pairs, into ``bleu.json`` with its signature; ``samples.jsonl``."""
    context = translator.model.config.model.context
    fit = [p for p in pairs if len(translator.tokenizer.encode(p.source)) < context]
    out.progress.begin("translating the validation sentences", len(fit), "sentences")
    started = time.perf_counter()
    found = translator([p.source for p in fit], config.beams(), partial(out.progress.update))
    seconds = time.perf_counter() - started
    out.progress.end()
    score, signature = corpus_bleu([each.text for each in found], [pair.target for pair in fit])
    out.progress.note(f"{out.name}: BLEU {score:.2f} on {len(fit):,} sentences ({signature})")
    about = {"signature": signature, "beam": config.beam, "length_penalty": config.length_penalty}
    write_json(out / "bleu.json", {"bleu": score, "sentences": len(fit), **about})
    rows = []
    for place, (each, pair) in enumerate(zip(found[:SAMPLES], fit, strict=False)):
        row = {"source": each.source, "translation": each.text, "reference": pair.target}
        drawn = {"attention": vars(translator.attention(each))} if place < DRAWN else {}
        rows.append({**row, "score": each.score, **drawn})
    write_jsonl(out / "samples.jsonl", rows)
    return {"bleu": score, "sentences_per_second": len(fit) / seconds}
