"""Where PPO's time goes: writing rollouts, and what the way of writing makes of a whole step.

All with random weights at the shipped quickstart recipe's shape and settings: how fast a model is
does not depend on what it has learnt. The floors are what the same work takes at least: its matrix
products at the measured peak, and, for rollouts, the reading of keys and values at the measured
memory speed. A step with rollouts written in another way is the same step with the time that those
take: what comes after them does not depend on how they were written.
"""

from __future__ import annotations

import json as json_module
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import Batch
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.sampling import choose_tokens
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.ppo import PPOConfig, PPOTrainer
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.stages.pretrain import PretrainConfig
from lmsmith.stages.tokenizer import TokenizerConfig
from lmsmith.training.machine import (
    ResolvedMachine,
    evaluation_mode,
    matrix_peak,
    prepare_process,
)

Count = Annotated[int, tyro.conf.arg(metavar="N")]
PARTS = ("rollout", "score", "update")
ROUNDS = 2
"""Turns of each way of writing; the fastest counts."""


def main(
    rows: Count = 0,
    prompt: Count = 72,
    tokens: Count = 0,
    iterations: Count = 2,
    peer: bool = True,
    json: bool = False,
) -> int:
    """Rollout tokens per second in each way of writing, the parts of a PPO step, and whole steps.

    Example: python benchmarks/ppo.py --json

    Args:
        rows: Rollouts of a step; the recipe's if 0.
        prompt: Tokens of every prompt.
        tokens: Tokens written for every prompt; the recipe's longest response if 0.
        iterations: PPO steps timed; the fastest counts.
        peer: Also measure transformers' generate, with its cache, in the same precision.
        json: Print one JSON object instead of the tables.
    """
    machine = prepare_process(MachineConfig())
    shape, config = quickstart()
    rows, tokens = rows or config.rollouts, tokens or config.max_new_tokens
    config = replace(
        config,
        max_prompt_tokens=prompt,
        max_new_tokens=tokens,
        rollouts=rows,
        minibatch=min(config.minibatch, rows),
        value_warmup_iterations=0,  # all models learn, as in most steps
    )
    peak, memory = matrix_peak(machine), memory_speed()
    rollout = measure_rollout(shape, machine, rows, prompt, tokens, peer)
    step = measure_step(shape, config, machine, prompt, iterations)
    floors = step_floors(shape, config, prompt, peak, memory)
    result = {
        "rollout": rollout,
        "step": {
            part: {
                "seconds": step[f"seconds/{part}"],
                "floor_seconds": floors[part],
                "share_of_floor": floors[part] / step[f"seconds/{part}"],
            }
            for part in PARTS
        },
        "whole_step": whole_steps(rollout, step),
        "rollouts": config.rollouts,
        "peak_gflops": peak,
        "memory_gigabytes_per_second": memory / 1e9,
    }
    print(json_module.dumps(result, indent=2)) if json else print_tables(result)
    return 0


def whole_steps(rollout: dict[str, float], step: dict[str, float]) -> dict[str, float]:
    """Seconds of a step with rollouts written in each way, and the engine's gain over it."""
    rest = step["seconds/score"] + step["seconds/update"]
    written = rollout["rows"] * rollout["new_tokens"]
    ours = rest + step["seconds/rollout"]
    found = {"seconds": ours}
    for way in ("without_cache", "peer"):
        if speed := rollout.get(f"{way}_tokens_per_second"):
            found[f"{way}_seconds"] = rest + written / speed
            found[f"{way}_ratio"] = found[f"{way}_seconds"] / ours
    return found


def quickstart() -> tuple[ModelConfig, PPOConfig]:
    """The shipped recipe's model shape and PPO settings."""
    stages = load_stage_recipe("quickstart").stages
    pretrain, tokenizer, config = stages["pretrain"], stages["tokenizer"], stages["ppo"]
    assert isinstance(pretrain, PretrainConfig)
    assert isinstance(tokenizer, TokenizerConfig)
    assert isinstance(config, PPOConfig)
    return replace(pretrain.model, vocabulary_size=tokenizer.vocabulary_size), config


def random_decoder(shape: ModelConfig, seed: int) -> Decoder:
    decoder = Decoder(shape).eval()
    decoder.initialise(torch.Generator().manual_seed(seed))
    return decoder


def random_prompts(shape: ModelConfig, rows: int, length: int) -> list[list[int]]:
    chance = torch.Generator().manual_seed(1)
    found: list[list[int]] = torch.randint(
        1, shape.vocabulary_size, (rows, length), generator=chance
    ).tolist()
    return found


def fastest(run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def memory_speed() -> float:
    """Bytes a second that all threads read from memory."""
    block = torch.ones(64 << 20)
    return block.nbytes / fastest(block.sum, 5)


def measure_rollout(
    shape: ModelConfig,
    machine: ResolvedMachine,
    rows: int,
    prompt: int,
    tokens: int,
    peer: bool,
) -> dict[str, float]:
    """Tokens a second, prompt reading included, in each way of writing: they take turns."""
    decoder, prompts = random_decoder(shape, 0), random_prompts(shape, rows, prompt)
    settings = SamplingSettings(tokens)
    ways: dict[str, Callable[[], object]] = {
        "": lambda: generate(decoder, prompts, settings, machine=machine),
        "without_cache_": lambda: write_without_cache(decoder, prompts, tokens, machine),
    }
    if peer:
        ways["peer_"] = peer_generate(shape, prompts, tokens, machine.dtype)
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(ROUNDS):
        for name, write in ways.items():
            started = time.perf_counter()
            write()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    written = rows * tokens
    return {
        "rows": float(rows),
        "prompt_tokens": float(prompt),
        "new_tokens": float(tokens),
        **{f"{name}tokens_per_second": written / took for name, took in seconds.items()},
        **{f"{name}ratio": took / seconds[""] for name, took in seconds.items() if name},
    }


def write_without_cache(
    decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int, machine: ResolvedMachine
) -> torch.Tensor:
    """Read everything again for each token, in the same precision and with the same sampling."""
    tokens_bt = torch.tensor(prompts)
    uniform_bn = torch.rand(
        len(prompts), tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    settings = SamplingSettings(tokens)
    with evaluation_mode(decoder), machine.autocast():
        for number in range(tokens):
            logits_bv = decoder.logits(decoder(tokens_bt)[:, -1]).float()
            drawn_b = choose_tokens(logits_bv, settings, uniform_bn[:, number])
            tokens_bt = torch.cat([tokens_bt, drawn_b[:, None]], dim=1)
    return tokens_bt


def peer_generate(
    shape: ModelConfig, prompts: Sequence[Sequence[int]], tokens: int, dtype: torch.dtype
) -> Callable[[], object]:
    """transformers' sampling at the same shape, with its own cache."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary_size,
            n_positions=shape.context,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.to(dtype).eval()
    tokens_bt = torch.tensor(prompts)
    return lambda: model.generate(
        input_ids=tokens_bt,
        attention_mask=torch.ones_like(tokens_bt),
        do_sample=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
    )


def measure_step(
    shape: ModelConfig, config: PPOConfig, machine: ResolvedMachine, prompt: int, iterations: int
) -> dict[str, float]:
    """The fastest time of each part of a PPO step, after a step that does not count."""
    policy, reference = random_decoder(shape, 0), random_decoder(shape, 0)
    scalar = [ScalarModel(random_decoder(shape, 3)) for _ in range(2)]
    for model in scalar:
        model.initialise_head(torch.Generator().manual_seed(4))
    trainer = PPOTrainer(
        policy,
        scalar[0],
        reference,
        scalar[1],
        random_prompts(shape, config.rollouts, prompt),
        stop_token=0,
        config=config,
        pretraining=lambda number: pretraining_rows(shape, config.ptx_rows, number),
        machine=machine,
    )
    steps = [trainer.step(number) for number in range(iterations + 1)][1:]
    return {f"seconds/{part}": min(row[f"seconds/{part}"] for row in steps) for part in PARTS}


def pretraining_rows(shape: ModelConfig, rows: int, number: int) -> Any:
    """Random text for PPO-ptx, a document a row."""
    tokens_bt = np.random.default_rng(number).integers(
        0, shape.vocabulary_size, (rows, shape.context)
    )
    positions_bt = np.broadcast_to(np.arange(shape.context), tokens_bt.shape).copy()
    documents_bt = np.zeros(tokens_bt.shape, dtype=np.int32)
    return Batch(tokens_bt, np.roll(tokens_bt, -1, axis=1), documents_bt, positions_bt)


def step_floors(
    shape: ModelConfig, config: PPOConfig, prompt: int, peak: float, memory: float
) -> dict[str, float]:
    """Least seconds of each part: matrix products at the peak, and the cache's reading."""
    length = prompt + config.max_new_tokens
    forward = shape.training_flops_per_token(length) / 3 / (peak * 1e9)
    read = config.rollouts * length * forward
    cached = sum(range(prompt, length)) * config.rollouts * shape.cache_bytes_per_token()
    text = config.ptx_rows * shape.context if config.ptx_coefficient else 0
    updates = config.ppo_epochs * (config.rollouts // config.minibatch)
    ptx = updates * text * shape.training_flops_per_token() / (peak * 1e9)
    return {
        "rollout": read + cached / memory,
        "score": 4 * read,  # policy, reference, value and reward model
        "update": config.ppo_epochs * 2 * 3 * read + ptx,  # policy and value model
    }


def print_tables(result: dict[str, Any]) -> None:
    rollout, step = result["rollout"], result["step"]
    table = Table(
        title=f"Rollout: {rollout['rows']:.0f} prompts of {rollout['prompt_tokens']:.0f} tokens, "
        f"{rollout['new_tokens']:.0f} written each"
    )
    for column in ("way of writing", "tokens/s", "lmsmith is faster by"):
        table.add_column(column, justify="left" if column == "way of writing" else "right")
    table.add_row("lmsmith, with cache", f"{rollout['tokens_per_second']:,.0f}", "")
    table.add_row(
        "the same without cache",
        f"{rollout['without_cache_tokens_per_second']:,.0f}",
        f"{rollout['without_cache_ratio']:.1f}×",
    )
    if "peer_ratio" in rollout:
        table.add_row(
            "transformers, with cache",
            f"{rollout['peer_tokens_per_second']:,.0f}",
            f"{rollout['peer_ratio']:.1f}×",
        )
    console = Console()
    console.print(table)
    total = sum(part["seconds"] for part in step.values())
    table = Table(
        title=f"A PPO step of {result['rollouts']} rollouts",
        caption=f"floor: products at {result['peak_gflops']:,.0f} GFLOP/s, the cache's reading at "
        f"{result['memory_gigabytes_per_second']:.0f} GB/s",
    )
    for column in ("part", "seconds", "share", "floor (s)", "floor / time"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, found in step.items():
        table.add_row(
            part,
            f"{found['seconds']:.2f}",
            f"{found['seconds'] / total:.0%}",
            f"{found['floor_seconds']:.2f}",
            f"{found['share_of_floor']:.0%}",
        )
    console.print(table)
    whole = result["whole_step"]
    table = Table(title="The whole step, by how its rollouts are written")
    for column in ("way of writing", "seconds", "lmsmith is faster by"):
        table.add_column(column, justify="left" if column == "way of writing" else "right")
    table.add_row("lmsmith, with cache", f"{whole['seconds']:.2f}", "")
    ways = {"without_cache": "the same without cache", "peer": "transformers, with cache"}
    for way, name in ways.items():
        if f"{way}_seconds" in whole:
            ratio = f"{whole[f'{way}_ratio']:.2f}×"
            table.add_row(name, f"{whole[f'{way}_seconds']:.2f}", ratio)
    console.print(table)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
