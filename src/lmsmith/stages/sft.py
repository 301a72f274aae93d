"""Stage: fine-tune a language model on demonstrations, learning the assistant's words only."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from lmsmith.catalogue.resolve import Source, card_of_sampling
from lmsmith.core.config import (
    Fraction,
    FractionBelowOne,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from lmsmith.core.errors import UserError
from lmsmith.corpus.rows import read_conversations, rows_of_split
from lmsmith.evaluation.methods.perplexity import reply_bits_per_byte
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.models.adapters import AdapterConfig, adapt
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, save_model
from lmsmith.prompts.selection import select_prompts
from lmsmith.prompts.sft_rows import SFTBatches, Window, conversation_windows
from lmsmith.rlhf.diagnosis import FEW_ENDED
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.language_model import train_language_model
from lmsmith.training.loop import FEW_STEPS, batch_for_steps
from lmsmith.training.machine import ResolvedMachine, resolve_machine
from lmsmith.training.optimiser import OptimiserConfig, Schedule, learning_rate_factors

MORE_ROOM = (
    "shorten the messages, raise sft.max_length, or take a model with a longer context or "
    "another chat template"
)

ENDED_PROMPTS, ENDED_TOKENS, ENDED_CONVERSATIONS = 24, 96, 240
"""Replies drawn to see whether they end; their length; conversations that give their prompts."""


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning."""

    epochs: PositiveFloat = 1.0
    """Passes over the demonstrations."""
    batch_tokens: PositiveInt = 8_192
    """Tokens of an update, padding included; a multiple of a row's."""
    min_steps: NonNegativeInt = FEW_STEPS
    """With little data, batch_tokens is lowered, to one row at least, for so many updates; 0 keeps
    it."""
    max_length: NonNegativeInt = 0
    """Tokens of a row: longer conversations are cut into several windows. 0 allows the model's
    context."""
    micro_batch_size: NonNegativeInt = 0
    """Rows computed at a time, 0 for a whole batch."""
    overlap_fraction: FractionBelowOne = 0.4
    """Share of the context that repeats earlier turns where a long conversation is cut into several
    windows."""
    dropout: FractionBelowOne = 0.0
    """Dropout on the residual branches, embeddings and attention."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters that are trained instead of the weights."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=3e-4, weight_decay=0.0)
    )
    """The optimiser of all trained weights."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 10
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.05
    """Factor of the peak learning rate at the last update."""
    validations: PositiveInt = 4
    """How often the loss on held-out conversations is measured, once an epoch at least; the weights
    with the lowest are kept."""
    validation_conversations: PositiveInt = 64
    """Held-out conversations that are read each time."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""


def run(config: SFTConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Cut demonstrations into windows, train on the assistant's tokens, save ``model/``."""
    machine = resolve_machine(out.machine)
    decoder = load_decoder(inputs["base"] / "model")
    tokenizer = Tokenizer.load(inputs["base"] / "model")
    adapt(decoder, config.adapter, machine.dtype, derive_seed(out.seed, "adapters"))
    metrics = learn_demonstrations(config, decoder, tokenizer, inputs["data"], machine, out)
    demonstrations = inputs["data"] / "demonstrations.jsonl"
    metrics |= share_ended(decoder, tokenizer, demonstrations, machine, out)
    base = Source("lmsmith", inputs["base"] / "model", inputs["base"].name)
    card: dict[str, object] = {"stage": "sft", "parents": [base.name], **card_of_sampling(base)}
    card |= {"settings": asdict(config), "metrics": metrics}
    save_model(out / "model", decoder, tokenizer, card, config.adapter, base.path)
    return metrics


def learn_demonstrations(
    config: SFTConfig,
    decoder: Decoder,
    tokenizer: Tokenizer,
    data: Path,
    machine: ResolvedMachine,
    out: StageFolder,
    key: str = "sft",
) -> dict[str, float]:
    """Train those weights of a decoder that are not frozen, in place.

    Args:
        data: folder of ``demonstrations.jsonl`` and, if any are held out, ``validation.jsonl``.
        key: where the settings stand in the recipe, for messages.

    Returns:
        Metrics.

    Raises:
        UserError: a batch that is not whole rows, or nothing to learn from.
    """
    context = min(config.max_length or decoder.config.context, decoder.config.context)
    if config.batch_tokens % context:
        raise UserError(
            f"{key}.batch_tokens = {config.batch_tokens} is not a multiple of a row's {context} "
            f"tokens ({key}.max_length, or the model's context)",
            f"set it to {max(1, round(config.batch_tokens / context)) * context}",
        )
    decoder.checkpoint_activations = config.checkpoint_activations
    windows, counts = demonstration_windows(
        data / "demonstrations.jsonl", tokenizer, context, config.overlap_fraction, out
    )

    def packed(rows: int) -> SFTBatches:
        return SFTBatches(
            windows, context=context, batch_size=rows, seed=derive_seed(out.seed, "batches")
        )

    batches = packed(config.batch_tokens // context)
    rows = batch_for_steps(
        config.epochs * batches.rows_per_epoch, batches.batch_size, config.min_steps
    )
    if rows < batches.batch_size:
        batches = packed(rows)
        out.warn(
            f"{batches.rows_per_epoch:,} rows of {context} tokens are little data, so "
            f"batch_tokens = {rows * context:,} is taken, not {config.batch_tokens:,}, for more "
            f"updates ({key}.min_steps = {config.min_steps})"
        )
    steps = max(1, round(config.epochs * batches.rows_per_epoch / batches.batch_size))
    held_out = readable_conversations(
        data / "validation.jsonl", tokenizer, context, config.validation_conversations
    )
    if not held_out:
        out.warn(
            "no conversation is held out (data.splits.validation), so nothing says whether "
            "it overfits"
        )
    target_bytes = sum(
        len(tokenizer.token_bytes(token))
        for tokens, is_target in windows
        for token, target in zip(tokens, is_target, strict=True)
        if target
    )

    decoder.set_dropout(config.dropout)
    summary = train_language_model(
        decoder,
        batches.batch,
        config.optimiser,
        learning_rate_factors(config, steps),
        machine,
        out,
        description=out.name,
        steps=steps,
        batch_tokens=rows * context,
        row_tokens=context,
        micro_batch_size=config.micro_batch_size,
        bytes_per_token=target_bytes / batches.targets_per_epoch,
        held_out_bits_per_byte=(
            partial(
                reply_bits_per_byte,
                tokenizer=tokenizer,
                conversations=held_out,
                machine=machine,
            )
            if held_out
            else None
        ),
        validations=max(config.validations, math.ceil(config.epochs)),
        more_steps=f"raise {key}.epochs, or add demonstrations",
    )
    decoder.set_dropout(0.0)
    metrics = summary | counts
    return metrics | {"epochs": batches.epochs_at(steps), "batch_tokens": float(rows * context)}


def readable_conversations(
    path: Path, tokenizer: Tokenizer, context: int, most: int
) -> list[list[dict[str, str]]]:
    """At most ``most`` conversations of a file with a reply that fits; none without the file."""
    found: list[list[dict[str, str]]] = []
    for conversation in rows_of_split(read_conversations, path):
        if len(found) == most:
            break
        with contextlib.suppress(UserError):
            if conversation_windows(tokenizer, conversation.messages, context, context // 2):
                found.append(conversation.messages)
    return found


def share_ended(
    decoder: Decoder, tokenizer: Tokenizer, path: Path, machine: ResolvedMachine, out: StageFolder
) -> dict[str, float]:
    """Share of replies that the model ends by itself, where people's are short; warns if low.

    Empty if no prompt and reply of a file's first conversations fit the context.
    """
    length = min(ENDED_TOKENS, decoder.config.context // 2)
    prompts = select_prompts(
        islice(read_conversations(path), ENDED_CONVERSATIONS),
        tokenizer,
        decoder.config.context - length,
        most=ENDED_PROMPTS,
        per_conversation=1,
        reply_tokens=(1, length // 2),
    )
    if not prompts:
        return {}
    seed = derive_seed(out.seed, "replies")
    settings = SamplingSettings(length, stop_tokens=tokenizer.stop_tokens, seed=seed)
    asked = [each.tokens for each in prompts]
    replies = generate(decoder, asked, settings, machine=machine, tokenizer=tokenizer)
    share = sum(reply[-1:] == [tokenizer.end_of_turn] for reply in replies) / len(replies)
    if share < FEW_ENDED:
        out.progress.say(
            f"sft: only {share:.0%} of {len(replies)} replies end within {length} tokens, where "
            f"people's end within {length // 2}: the model rarely ends a reply. Train "
            "for more steps (raise sft.epochs), or add demonstrations"
        )
    return {"share_ended": share}


def demonstration_windows(
    path: Path, tokenizer: Tokenizer, context: int, history: float, out: StageFolder
) -> tuple[list[Window], dict[str, float]]:
    """Windows of all conversations in a file, and counts; warns of what is left out or cut.

    Raises:
        UserError: nothing is left to learn from.
    """
    windows: list[Window] = []
    counts: Counter[str] = Counter()
    refusal: UserError | None = None
    for conversation in rows_of_split(read_conversations, path):
        counts["conversations"] += 1
        messages = conversation.messages
        counts["replies"] += sum(message["role"] == "assistant" for message in messages)
        try:
            cut = conversation_windows(tokenizer, messages, context, int(context * history), counts)
        except UserError as error:
            counts["conversations_refused"] += 1
            refusal = refusal or UserError(f"{conversation.id}: {error.problem}", error.fix)
            continue
        counts["conversations_longer_than_context"] += len(cut) > 1
        windows += cut
    warnings = windows_warnings(counts, context, refusal)
    if not windows and warnings:
        reasons = "; ".join(warnings)
        raise UserError(f"{path}: nothing is left to learn from: {reasons}", MORE_ROOM)
    if not windows:
        raise UserError(
            f"{path} holds no conversation in which the assistant says something",
            "give the data stage conversations with assistant turns, and "
            "data.splits.demonstrations a share",
        )
    for warning in warnings:
        out.warn(f"{path.name}: {warning}")
    names = (
        "conversations",
        "conversations_longer_than_context",
        "conversations_refused",
        "replies",
        "replies_cut",
        "replies_without_question",
        "replies_not_written",
    )
    return windows, {"windows": float(len(windows)), **{n: float(counts[n]) for n in names}}


def windows_warnings(
    counts: Mapping[str, int], context: int, refusal: UserError | None
) -> list[str]:
    """A sentence for each reason to leave out or cut a reply."""
    of_replies, context_of = f"of {counts['replies']:,} replies", f"context of {context} tokens"
    reasons = {
        "replies_without_question": f"{of_replies} left out, because what they answer does not fit "
        f"the {context_of}",
        "replies_cut": f"{of_replies} lose their end, being too long for the {context_of}; they do "
        "not teach where to end",
        "replies_not_written": f"{of_replies} left out by the model's chat template",
    }
    found = [f"{counts[name]:,} {words}" for name, words in reasons.items() if counts[name]]
    if refusal is not None:
        found.append(
            f"{counts['conversations_refused']:,} of {counts['conversations']:,} conversations "
            f"left out, because the model's chat template refuses them (the first: "
            f"{refusal.problem})"
        )
    return found
