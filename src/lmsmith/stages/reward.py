"""Stage: train a reward model on K-way rankings (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from lmsmith.core.config import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Problem,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, read_rows, write_json
from lmsmith.corpus.messages import validate_prompt
from lmsmith.corpus.rows import read_rankings, rows_of_split
from lmsmith.models.adapters import AdapterConfig, TrainedState, adapt
from lmsmith.models.batching import epoch_batches
from lmsmith.models.folder import load_decoder, load_scalar_model, load_tokenizer, save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.head import fit_head
from lmsmith.rlhf.objective import pair_accuracy, ranking_loss
from lmsmith.rlhf.ranking import (
    LEFT_OUT,
    EncodedRanking,
    EncodedThumb,
    accumulate_ranking_gradients,
    encode_rankings,
    encode_responses,
    rankings_warnings,
    score_rankings,
    score_table,
)
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.loop import (
    FEW_STEPS,
    BestWeights,
    batch_for_steps,
    few_steps_warning,
    rise_warning,
    run_steps,
)
from lmsmith.training.machine import ResolvedMachine, resolve_machine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, Schedule, learning_rate_factors
from lmsmith.training.parallel import from_leader, leave_stage
from lmsmith.training.sharding import divided, fetch

MEASURED_PROMPTS = 1_000
"""Training prompts that set the zero of the rewards."""


@dataclass(frozen=True)
class RewardConfig:
    """Settings of the reward model's training."""

    epochs: NonNegativeInt = 1
    """Passes over the rankings; fewer when held-out accuracy stops rising. A second pass over a few
    thousand prompts overfits a small model. 0 fits the head alone, with fit_head,
    and thumbs are not learnt."""
    batch_prompts: PositiveInt = 16
    """Prompts of an update, each with all its responses."""
    min_steps: NonNegativeInt = FEW_STEPS
    """With little data, batch_prompts is lowered, to 1 at least, for so many updates; 0 keeps
    it."""
    dropout: FractionBelowOne = 0.0
    """Dropout on the residual branches, embeddings and attention, in training only."""
    fit_head: bool = False
    """Fit the head to the rankings before anything is trained (linear probing, then fine-tuning);
    with few rankings that is safer. A model that starts from an earlier one keeps its head, unless
    epochs is 0."""
    frozen_layers: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """So many of the lowest layers, and the embeddings, stay as they were; −1 trains everything."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters that are trained, with the head, instead of the weights."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=2e-4, weight_decay=0.01)
    )
    """The optimiser of all trained weights."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 10
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.05
    """Factor of the peak learning rate at the last update."""
    validations: PositiveInt = 4
    """How often an epoch the accuracy on held-out rankings is measured; the weights with the best
    are kept."""
    max_length: NonNegativeInt = 0
    """Most tokens of a prompt and one response; the oldest turns are dropped beyond it. 0 allows
    the model's context."""
    thumbs_weight: NonNegativeFloat = 0.1
    """Weight of the loss of thumbs beside that of rankings, where there are thumbs
    (`lmsmith improve`)."""
    prompts_together: bool = False
    """All rankings of a prompt are learnt in one update and count as one, however many people
    ranked it."""
    patience: NonNegativeInt = 6
    """Stop after so many measurements without a better one; 0 never stops."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""

    def check(self) -> list[Problem]:
        """Frozen layers beside adapters, and no epoch without a fitted head."""
        problems = []
        if self.adapter.rank and self.frozen_layers >= 0:
            fix = "leave it out: adapters freeze every layer"
            expected = "none beside adapters"
            problems += [Problem("frozen_layers", self.frozen_layers, expected, fix)]
        if not self.epochs and not self.fit_head:
            fix = "set fit_head = true to fit the head alone"
            problems += [Problem("epochs", 0, "at least 1 without fit_head", fix)]
        return problems


def run(config: RewardConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Train on ``train.jsonl``, keep the best on ``validation.jsonl``, save ``model/``."""
    name = out.name
    machine = resolve_machine(out.machine)
    tokenizer = load_tokenizer(inputs["base"] / "model")
    decoder = load_decoder(inputs["base"] / "model")
    context = min(config.max_length or decoder.config.context, decoder.config.context)
    train, counts = load_rankings(inputs["rankings"] / "train.jsonl", tokenizer, context, out)
    held_out, _ = load_rankings(inputs["rankings"] / "validation.jsonl", tokenizer, context, out)
    if not train:
        raise UserError(
            f"{inputs['rankings'] / 'train.jsonl'}: no ranking to learn from",
            "a ranking needs two different responses of different ranks, and a prompt that fits "
            f"the context; raise {name}.max_length if they differ beyond its {context}",
        )

    if not any(each.weight for each in train):
        raise UserError(
            f"{inputs['rankings'] / 'train.jsonl'}: every ranking has the weight 0",
            "give those a weight that are to be learnt",
        )

    thumbs = load_thumbs(inputs["rankings"] / "thumbs.jsonl", tokenizer, context)
    thumbs = thumbs if config.thumbs_weight else []
    groups = None
    if config.prompts_together:
        groups, train = [tuple(each.prompt) for each in train], share_weights(train)

    if "start" in inputs:
        model = load_scalar_model(inputs["start"] / "model")
        decoder = model.decoder
    else:
        model = ScalarModel(decoder)
        model.initialise_head(torch.Generator().manual_seed(derive_seed(out.seed, "head")))
    machine.put(model)
    decoder.attend_explicitly()
    fitted: dict[str, float] = {}
    if config.fit_head and ("start" not in inputs or not config.epochs):
        fitted = fit_head_once(model, train, machine, out)
    if config.epochs:
        fitted |= train_model(config, model, train, groups, held_out, thumbs, machine, out)
    else:
        fitted |= {"steps": 0.0, "train_accuracy": fitted["head_train_accuracy"]}
        leave_stage()
    metrics = {
        "prompts": float(len(train)),
        **({"thumbs": float(len(thumbs))} if thumbs and config.epochs else {}),
        **fitted,
        **counts,
        "longer_wins_train_accuracy": longer_wins_accuracy(train),
        **reply_lengths(train),
    }
    if held_out:
        accuracy, loss = measure(model, held_out, machine)
        longer = longer_wins_accuracy(held_out)
        metrics |= {
            "validation_accuracy": accuracy,
            "validation_loss": loss,
            "validation_prompts": float(len(held_out)),
            "longer_wins_validation_accuracy": longer,
        }
        if accuracy <= max(0.5, longer, 1.0 - longer):
            out.warn(
                f"on held-out rankings it is right in {accuracy:.1%} of the pairs, no more often "
                f"than a coin or the reply's length ({max(longer, 1 - longer):.1%}); PPO would "
                "learn little from it. More prompts, or a better base, would help"
            )
    card: dict[str, object] = {"stage": name, "parents": [inputs["base"].name]}
    card |= {"settings": asdict(config), "metrics": metrics}
    adapter = config.adapter if config.epochs else AdapterConfig()
    save_model(out / "model", model, tokenizer, card, adapter, inputs["base"] / "model")
    return metrics


def train_model(
    config: RewardConfig,
    model: ScalarModel,
    train: Sequence[EncodedRanking],
    groups: Sequence[object] | None,
    held_out: Sequence[EncodedRanking],
    thumbs: Sequence[EncodedThumb],
    machine: ResolvedMachine,
    out: StageFolder,
) -> dict[str, float]:
    """Train it in place and keep the best; its metrics.

    Args:
        groups: of each ranking of ``train``, as in `epoch_batches`.
    """
    name, decoder = out.name, model.decoder
    decoder.checkpoint_activations = config.checkpoint_activations
    decoder.set_dropout(config.dropout)
    adapt(model, config.adapter, machine.dtype, derive_seed(out.seed, "adapters"))
    freeze_layers(model, config.frozen_layers)
    (trained,) = divided(machine, model)
    optimiser = Optimiser(trained, config.optimiser, [trained.decoder.blocks], machine.dtype)
    batch_prompts = batch_for_steps(
        config.epochs * len(train), config.batch_prompts, config.min_steps
    )
    if batch_prompts < config.batch_prompts:
        out.warn(
            f"{len(train):,} rankings are little data, so batch_prompts = {batch_prompts} is "
            f"taken, not {config.batch_prompts}, for more updates ({name}.min_steps = "
            f"{config.min_steps})"
        )
    lengths = [ranking.length for ranking in train]
    batches = epoch_batches(lengths, batch_prompts, config.epochs, out.seed, groups)
    steps, per_epoch = len(batches), len(batches) // config.epochs
    out.warn(few_steps_warning(steps, f"raise {name}.epochs, or add rankings"))
    best, factors = BestWeights(trained), learning_rate_factors(config, steps)
    torch.manual_seed(derive_seed(out.seed, "dropout"))

    def step(index: int) -> Mapping[str, float]:
        started = time.perf_counter()
        trained.train()
        chosen = [train[i] for i in batches[index]]
        loss, accuracy, tokens = accumulate_ranking_gradients(
            trained,
            chosen,
            machine,
            thumbs=thumbs[index % steps :: steps],
            thumbs_weight=config.thumbs_weight,
        )
        factor = factors(index)
        gradient_norm = optimiser.step(factor)
        return {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "tokens_per_second": tokens / (time.perf_counter() - started),
        }

    def validate(done: int) -> dict[str, float]:
        accuracy, loss = measure(trained, held_out, machine)
        best.offer((accuracy, -loss), done)
        return {"validation/accuracy": accuracy, "validation/loss": loss}

    def finish() -> None:
        best.restore()
        fetch(trained, model)

    if config.fit_head and held_out:
        validate(0)
    done = run_steps(
        steps=steps,
        step=step,
        state={"model": TrainedState(trained), "optimiser": optimiser, "best": best},
        out=out,
        description=name,
        shown=("loss", "accuracy", "validation/accuracy", "tokens_per_second"),
        evaluate=validate if held_out else None,
        evaluate_every=max(1, per_epoch // config.validations),
        stop_early=lambda: 0 < config.patience <= best.looks_since,
        finish=finish,
    )
    looks = [
        (int(row["step"]), row["validation/loss"])
        for row in read_metrics(out.metrics_log().path)
        if "validation/loss" in row
    ]
    out.warn(rise_warning("ranking loss", looks, best.step))
    decoder.set_dropout(0.0)
    set_shift(model, train, machine)
    return {
        "steps": float(done),
        "best_step": float(best.step if best.weights else done),
        "batch_prompts": float(batch_prompts),
        "train_accuracy": measure(model, train[: MEASURED_PROMPTS // 2], machine)[0],
    }


def fit_head_once(
    model: ScalarModel,
    rankings: Sequence[EncodedRanking],
    machine: ResolvedMachine,
    out: StageFolder,
) -> dict[str, float]:
    """`fit_head`, kept beside the checkpoints: a continued run takes the same head."""
    path = out.checkpoints / "head.json"

    def fit() -> None:
        if path.is_file():
            return
        out.progress.note(f"{out.name}: fitting the head to {len(rankings):,} rankings")
        found = fit_head(model, rankings, machine)
        weight, shift = model.head.weight[0].tolist(), float(model.shift)
        write_json(path, {"figures": found, "weight": weight, "shift": shift})
        share = f"{found['head_accuracy']:.1%}"
        out.progress.note(f"{out.name}: the head is right in {share} of the pairs of other prompts")

    from_leader(fit)
    kept: Any = read_json(path)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([kept["weight"]]))
        model.head.bias.zero_()
        model.shift.fill_(kept["shift"])
    figures: dict[str, float] = kept["figures"]
    return figures


def load_rankings(
    path: Path, tokenizer: Tokenizer, context: int, out: StageFolder
) -> tuple[list[EncodedRanking], dict[str, float]]:
    """A file's rankings to learn from, as tokens, and counts of what is left out or cut; warns."""
    rankings = list(rows_of_split(read_rankings, path))
    counts: Counter[str] = Counter()
    encoded, _ = encode_rankings(tokenizer, rankings, context, counts)
    for warning in rankings_warnings(counts, context):
        out.progress.say(f"{path.parent.name}/{path.name}: {warning}")
    if counts["too_long"] > counts["rankings"] / 20:
        out.warn(
            f"{counts['too_long']:,} of {counts['rankings']:,} rankings of {path.name} do not fit "
            f"{context} tokens; raise {out.name}.max_length to learn from them"
        )
    names = (*(f"responses_{what}" for what in ("cut", "equal", "empty")), "disputed")
    left_out = {f"left_out_{name}": float(counts[name]) for name in LEFT_OUT}
    return encoded, left_out | {name: float(counts[name]) for name in names}


def load_thumbs(path: Path, tokenizer: Tokenizer, context: int) -> list[EncodedThumb]:
    """Thumbs of a file that there need not be; those whose prompt does not fit are left out."""
    found = []
    for where, row in read_rows(path) if path.is_file() else ():
        prompt, response = validate_prompt(row.get("prompt"), where), row.get("response")
        liked, weight = row.get("liked"), row.get("weight", 1.0)
        if not isinstance(response, str) or not isinstance(liked, bool):
            raise UserError(f"{where}: not a thumb", "a row has prompt, response and liked")
        if response.strip():
            with contextlib.suppress(UserError):
                tokens, (encoded,) = encode_responses(tokenizer, prompt, [response], context)
                found.append(EncodedThumb(tokens, encoded, liked, float(str(weight))))
    return found


def share_weights(rankings: Sequence[EncodedRanking]) -> list[EncodedRanking]:
    """The rankings, those of one prompt sharing the weight of one by their untied pairs.

    So the loss of a prompt is the mean over all its pairs, of all people
    (Ouyang et al. 2022, section 3.5).
    """
    pairs = [sum(one != other for one, other in combinations(each.ranks, 2)) for each in rankings]
    totals: Counter[tuple[int, ...]] = Counter()
    for each, count in zip(rankings, pairs, strict=True):
        totals[tuple(each.prompt)] += count
    shared = [
        replace(each, weight=each.weight * count / totals[tuple(each.prompt)])
        for each, count in zip(rankings, pairs, strict=True)
    ]
    mean = sum(each.weight for each in shared) / len(shared)
    return [replace(each, weight=each.weight / mean) if mean else each for each in shared]


def freeze_layers(model: ScalarModel, layers: int) -> None:
    """Freeze the embeddings and the lowest ``layers`` blocks; nothing if it is −1."""
    decoder = model.decoder
    if layers >= 0:
        for module in (
            decoder.token_embedding,
            decoder.position_embedding,
            *decoder.blocks[:layers],
        ):
            module.requires_grad_(False)


def measure(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> tuple[float, float]:
    """Accuracy over the pairs that are not tied, and the ranking loss."""
    table = score_table(rankings, score_rankings(model, rankings, machine))
    return pair_accuracy(*table), float(ranking_loss(*table))


def set_shift(
    model: ScalarModel, rankings: Sequence[EncodedRanking], machine: ResolvedMachine
) -> None:
    """Move the rewards so that the best responses, the demonstrations, score 0 on average.

    `MEASURED_PROMPTS` prompts give their mean within 1/30 of the scores' deviation.
    """
    best = [
        EncodedRanking(each.prompt, [each.responses[i] for i in each.best], [1] * len(each.best))
        for each in rankings[:MEASURED_PROMPTS]
    ]
    scores = [score for row in score_rankings(model, best, machine) for score in row]
    model.shift += sum(scores) / len(scores)


def longer_wins_accuracy(rankings: Sequence[EncodedRanking]) -> float:
    """Accuracy of the rule that the response of more tokens is the better one."""
    lengths = [[float(len(response)) for response in each.responses] for each in rankings]
    return pair_accuracy(*score_table(rankings, lengths))


def reply_lengths(rankings: Sequence[EncodedRanking]) -> dict[str, float]:
    """Mean tokens of the best responses and of the others, the end of turn not counted."""
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for ranking in rankings:
        for place, response in enumerate(ranking.responses):
            lengths[place in ranking.best].append(len(response) - 1)
    best, others = (sum(each) / max(1, len(each)) for each in lengths.values())
    return {"best_reply_tokens": best, "other_reply_tokens": others}
