"""Every stage that computes, tiny, and generation: the figures that two devices must agree on.

``scenario.py far`` prints them of the simulated device, in a process of its own: PyTorch counts the
devices once, at the first backward pass.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from preference_world import (
    conversations,
    ending_decoder,
    make_tokenizer,
    stage_folder,
    write_data,
    write_models,
)
from test_adapters import rankings
from test_finetune import CONFIG as FINETUNE
from test_finetune import ROWS, task_file
from test_masked_lm import CONFIG as MASKED_LM
from test_pretrain import documents
from test_translate import config as translate_config

from far_device import NAME
from lmsmith.core.files import write_json
from lmsmith.generation.decode_graphs import DecodeGraphs
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.log_probs import token_log_probs
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.rlhf.ppo import PPOConfig
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.stages import (
    distil,
    emulator,
    evaluate,
    finetune,
    masked_lm,
    offsite,
    ppo,
    pretrain,
    reward,
    sft,
    translate,
)
from lmsmith.stages import (
    rankings as sampled,
)
from lmsmith.tokenizers.word_piece import train_word_piece
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig
from recorded_operations import RecordedOperations

TOKENIZER = make_tokenizer()
SLOW = OptimiserConfig(learning_rate=1e-3, weight_decay=0.01)
SHAPE = ModelConfig(2, 16, 2, 64)
PRETRAIN = pretrain.PretrainConfig(
    model=replace(SHAPE, kv_heads=1, positions="rotary", norm="rms", activation="swiglu"),
    tokens=256,
    batch_tokens=128,
    optimiser=OptimiserConfig(name="muon", learning_rate=1e-3, matrix_learning_rate=1e-3),
    warmup_steps=1,
    validations=1,
    validation_documents=2,
)
SFT = sft.SFTConfig(
    epochs=1, batch_tokens=512, min_steps=0, adapter=AdapterConfig(rank=2), optimiser=SLOW
)
RANKINGS = sampled.RankingsConfig(max_prompts=4, max_test_prompts=2, max_new_tokens=12)
REWARD = reward.RewardConfig(batch_prompts=8, min_steps=0, optimiser=SLOW, fit_head=True)
PPO = PPOConfig(
    iterations=2,
    rollouts=8,
    minibatch=4,
    ptx_rows=1,
    max_new_tokens=8,
    max_prompt_tokens=40,
    snapshots=0,
    optimiser=SLOW,
    value_optimiser=SLOW,
)
EVALUATE = evaluate.EvaluateConfig(
    max_prompts=2, max_conversations=2, min_new_tokens=1, max_new_tokens=12, frontier_prompts=1
)
DISTIL = distil.DistilConfig(
    student=ModelConfig(1, 16, 2, 32), tokens=256, batch_tokens=64, optimiser=SLOW, test_texts=2
)


def compared(folder: Path) -> list[list[float]]:
    """Losses and norms of a stage's steps."""
    names = ("loss", "gradient_norm", "loss/policy_avg", "loss/value_avg", "loss/ptx_avg")
    names += ("objective/scores", "objective/kl", "policy/gradient_norm", "validation/loss")
    rows = read_metrics(folder / "metrics.jsonl")
    return [[row[name] for name in names if name in row] for row in rows]


def run_stages(run: Path) -> dict[str, Any]:
    """All stages of a small world in ``run``; their figures."""
    data = write_data(
        run / "data",
        documents=documents(12, 1),
        validation_documents=documents(3, 2),
        test_documents=documents(3, 3),
        demonstrations=conversations(12, 4, "a"),
        validation=conversations(3, 5, "b"),
        prompts=conversations(6, 6, "c"),
        test=conversations(4, 7, "d"),
        comparisons=conversations(6, 8, "e"),
    )
    write_json(data / "mixture.json", {"books": 2.0})
    TOKENIZER.save(run / "tokenizer")
    splits = {"train": rankings(24, 5), "validation": rankings(6, 6), "test": rankings(6, 7)}
    write_data(run / "ranked", **splits)
    write_models(run, TOKENIZER, base=ending_decoder(TOKENIZER, context=64))
    found: dict[str, Any] = {}

    def stage(name: str, module: Any, config: Any, **inputs: str) -> dict[str, float]:
        folders = {role: run / place for role, place in inputs.items()}
        metrics: dict[str, float] = module.run(config, folders, stage_folder(run / name))
        found[name] = compared(run / name)
        return metrics

    stage("pretrain", pretrain, PRETRAIN, data="data", tokenizer="tokenizer")
    stage("sft", sft, SFT, data="data", base="base")
    stage("rankings", sampled, RANKINGS, data="data", policy="sft")
    found["rankings"] = [(run / "rankings/train.jsonl").read_text()]
    metrics = stage("reward", reward, REWARD, rankings="ranked", base="base")
    found["reward head"] = [[metrics["head_accuracy"], metrics["validation_loss"]]]
    stage("ppo", ppo, PPO, data="data", policy="base", reward="reward", pretrain="pretrain")
    roles = {"rankings": "ranked", "sft": "base"} | {n: n for n in ("data", "base", "reward")}
    metrics = stage("evaluate", evaluate, EVALUATE, **roles)
    found["evaluate"] = [[metrics["base.bits_per_byte"], metrics["reward.accuracy"]]]
    stage("distil", distil, DISTIL, data="data", base="base")
    return found | other_models(run, data) | offsite_tuning(run, data)


def other_models(run: Path, data: Path) -> dict[str, Any]:
    """An encoder, a classifier and a translator."""
    texts = [str(row["text"]) for row in documents(12, 1)]
    word_piece = train_word_piece(texts, 60)
    word_piece.save(run / "word_piece")
    short = replace(MASKED_LM, tokens=512, model=replace(MASKED_LM.model, dropout=0.0))
    inputs = {"data": data, "tokenizer": run / "word_piece"}
    masked_lm.run(short, inputs, stage_folder(run / "masked_lm"))
    task = str(task_file(run / "task", ROWS))
    slow = replace(FINETUNE, epochs=1, task=task, optimiser=SLOW, head_dropout=0.0)
    finetune.run(slow, {"base": run / "base"}, stage_folder(run / "finetune"))
    few = replace(translate_config(run / "pairs"), epochs=0.5, beam=1, optimiser=SLOW)
    few = replace(few, model=replace(few.model, dropout=0.0))
    translate.run(few, {}, stage_folder(run / "translate"))
    return {name: compared(run / name) for name in ("masked_lm", "finetune", "translate")}


def offsite_tuning(run: Path, data: Path) -> dict[str, Any]:
    """An emulator, and its adapters tuned."""
    deep = Decoder(replace(SHAPE, layers=4, vocabulary_size=TOKENIZER.vocabulary_size))
    deep.initialise(torch.Generator().manual_seed(2))
    write_models(run, TOKENIZER, deep=deep)
    made = emulator.EmulatorConfig(
        model=str(run / "deep/model"), adapter_layers=1, keep_layers=1, tokens=256,
        batch_tokens=64, max_length=32, texts=(str(data / "documents.jsonl"),), optimiser=SLOW,
        teacher_weight=0.5, test_texts=2,
    )  # fmt: skip
    emulator.run(made, {}, stage_folder(run / "emulator"))
    whole = replace(SFT, adapter=AdapterConfig())
    tuned = offsite.OffsiteConfig(task=str(data / "demonstrations.jsonl"), sft=whole)
    offsite.run(tuned, {"emulator": run / "emulator"}, stage_folder(run / "offsite"))
    return {name: compared(run / name) for name in ("emulator", "offsite")}


def run_generation() -> dict[str, Any]:
    """Replies, and log-probabilities of a text, of a grouped, banded model."""
    shape = ModelConfig(
        3, 16, 4, 96, 40, kv_heads=2, positions="rotary", attention_pattern=("dense", "banded"),
        window=20,
    )  # fmt: skip
    decoder = Decoder(shape)
    decoder.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for value in decoder.parameters():
            value.mul_(3.0)
    from lmsmith.core.recipe import MachineConfig

    machine = resolve_machine(MachineConfig(precision="fp32", threads=1))
    prompts = [[n % 40 for n in range(length)] for length in (3, 30, 70)]
    settings = SamplingSettings(24, temperature=0.8, seed=3)
    model = InferenceDecoder(decoder, machine)
    if machine.place.type == NAME:
        model.graphs = DecodeGraphs(machine.place, RecordedOperations)
    cache = model.new_cache(1, 96)
    hidden_nd = model.read([(cache.open(), prompts[2])], cache)
    logits_nv = model.logits(hidden_nd[:-1])
    read = token_log_probs(logits_nv, prompts[2][1:], [1] * 69, Vocabulary(None, 40))
    replies = generate(model, prompts, settings, machine=machine)
    assert model.graphs is None or model.graphs.shapes, model.graphs.failure
    return {"replies": replies, "read": [[each.log_prob for each in read]]}


def run_all() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run_stages(Path(folder)) | run_generation()


if __name__ == "__main__":
    from far_device import far_away

    torch.set_num_threads(1)
    with far_away():
        figures = run_all()
    json.dump(figures, sys.stdout)
