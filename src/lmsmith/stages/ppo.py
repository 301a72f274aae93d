"""Stage: align the SFT policy to the reward model with PPO, on prompts alone."""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lmsmith.catalogue.resolve import Source, card_of_sampling
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus.batches import PretrainingBatches, read_mixture
from lmsmith.corpus.rows import read_conversations, rows_of_split
from lmsmith.generation.vllm import stage_engine
from lmsmith.models.adapters import adapt
from lmsmith.models.folder import load_decoder, load_scalar_model, save_model
from lmsmith.prompts.selection import prompts_warning, select_prompts
from lmsmith.rlhf.ppo import SHORTEST_PROMPT, PPOConfig, PPOTrainer
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from lmsmith.training.parallel import team

__all__ = ["PPOConfig", "run"]

FEW_UPDATES = 16
"""Fewer updates of the policy cannot teach it much."""


def run(config: PPOConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Policy and reference from SFT, value model from the reward model; save ``model/``."""
    machine = resolve_machine(out.machine)
    reference = machine.put(load_decoder(inputs["policy"] / "model"))
    reward_model = machine.put(load_scalar_model(inputs["reward"] / "model"))
    tokenizer = Tokenizer.load(inputs["policy"] / "model")
    context = reference.config.context
    room = min(config.max_prompt_tokens, context - config.max_new_tokens)
    if context - config.max_new_tokens < SHORTEST_PROMPT:
        raise UserError(
            f"ppo.max_new_tokens = {config.max_new_tokens} leaves no room for a prompt in the "
            f"model's context of {context} tokens",
            f"set it to {context // 4} or less",
        )
    path = inputs["data"] / "prompts.jsonl"
    counts: Counter[str] = Counter()
    chosen = select_prompts(
        rows_of_split(read_conversations, path),
        tokenizer,
        room,
        most=config.max_prompts,
        per_conversation=config.prompts_per_conversation,
        counts=counts,
    )
    if not chosen:
        raise UserError(
            f"{path} holds no turn of a user that fits {room} tokens "
            f"(it has {counts['turns']} turns of a user)",
            "raise ppo.max_prompt_tokens, or give conversations with shorter messages"
            if counts["turns"]
            else "give data.splits.prompts a share, or add conversations: one is enough",
        )
    if warning := prompts_warning(counts, room):
        out.progress.say(f"ppo: {warning}. Raise ppo.max_prompt_tokens to use more")
    pretraining = pretraining_batches(config, inputs, context, out.seed)
    policy, value_model = copy.deepcopy(reference), copy.deepcopy(reward_model)
    for name, model in (("policy", policy), ("value", value_model)):
        adapt(model, config.adapter, machine.dtype, derive_seed(out.seed, "adapters", name))
    for decoder in (policy, value_model.decoder):
        decoder.checkpoint_activations = config.checkpoint_activations
    if warning := few_updates_warning(config):
        out.progress.say(f"ppo: {warning}")
    parents = [inputs["policy"].name, inputs["reward"].name]
    bases = inputs["policy"] / "model", inputs["reward"] / "model"
    card = {"stage": "ppo", "parents": parents, "settings": asdict(config)}
    card |= card_of_sampling(Source("lmsmith", bases[0], parents[0]))
    snapshot_steps = snapshot_iterations(config)

    def keep_snapshot(done: int) -> dict[str, float]:
        if done in snapshot_steps:
            trainer.fetch()
        if done in snapshot_steps and team().leads:
            folder = out / f"snapshots/step-{done:06d}"
            save_model(folder, policy, tokenizer, card, config.adapter, bases[0])
        return {}

    with stage_engine(out, reference, tokenizer, config.adapter) as engine:
        trainer = PPOTrainer(
            policy,
            value_model,
            reference,
            reward_model,
            [prompt.tokens for prompt in chosen],
            stop_token=tokenizer.end_of_turn,
            config=config,
            pretraining=pretraining.batch if pretraining is not None else None,
            seed=out.seed,
            machine=machine,
            decode=lambda tokens: tokenizer.decode(tokens, special=True),
            tokenizer=tokenizer,
            engine=engine,
        )
        rows = trainer.fit(out, keep_snapshot)
    write_jsonl(out / "samples.jsonl", trainer.samples.rows)
    metrics = summary(rows) | {
        "prompts": float(len(chosen)),
        "prompts_left_out": float(counts["too_long"] + counts["empty"]),
    }
    about = card | {"metrics": metrics}
    save_model(out / "model", policy, tokenizer, about, config.adapter, bases[0])
    save_model(out / "value", value_model, tokenizer, card, config.adapter, bases[1])
    return metrics


def few_updates_warning(config: PPOConfig) -> str:
    """A sentence where the updates are too few to learn much; else empty."""
    iterations = config.iterations - config.value_warmup_iterations
    updates = iterations * config.ppo_epochs * (config.rollouts // config.minibatch)
    if updates >= FEW_UPDATES:
        return ""
    return (
        f"too few updates of the policy to learn much ({updates}): raise ppo.iterations, or "
        "lower ppo.minibatch"
    )


def pretraining_batches(
    config: PPOConfig, inputs: Mapping[str, Path], context: int, seed: int
) -> PretrainingBatches | None:
    """Rows of the policy's pretraining text, in the same mixture; None without PPO-ptx."""
    if not config.ptx_coefficient:
        return None
    seed = derive_seed(seed, "pretraining")
    return PretrainingBatches(
        *read_mixture(inputs["pretrain"]),
        context=context,
        batch_size=config.ptx_rows,
        seed=seed,
        own=team().rows,
    )


def snapshot_iterations(config: PPOConfig) -> set[int]:
    """Iterations after which the policy is kept, evenly spread; the last one is ``model/``."""
    count = config.snapshots
    return {round(config.iterations * (i + 1) / (count + 1)) for i in range(count)} - {0}


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The run in a few numbers: its last fifth against its first iteration.

    Iterations that warm up the value model measure nothing of the policy, and do not count there.
    """
    last = rows[-max(1, len(rows) // 5) :]

    def late(name: str) -> float:
        return statistics.fmean(row[name] for row in last if name in row)

    return {
        "kl": late("objective/kl"),
        "scores": late("objective/scores"),
        "first_scores": rows[0]["objective/scores"],
        "rlhf_reward": late("objective/rlhf_reward"),
        "entropy": late("policy/entropy_avg"),
        "first_entropy": rows[0]["policy/entropy_avg"],
        "clip_fraction": late("policy/clipfrac_avg"),
        "response_tokens": late("objective/response_tokens"),
        "share_ended": late("val/share_ended"),
        "rollout_tokens_per_second": late("rollout_tokens_per_second"),
        "episodes": rows[-1]["episode"],
        "iterations": float(len(rows)),
        **{
            f"seconds_{part}": sum(row[f"seconds/{part}"] for row in rows)
            for part in ("rollout", "score", "update")
        },
    }
