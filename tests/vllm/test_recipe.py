"""Whole recipes by the command, whose replies the real vLLM writes: alone, and by two processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preference_world import WORDS, conversations, sentence
from served_kinds import SETTINGS, SHAPES, TOKENIZER, Kind

from lmsmith.core.files import read_jsonl, write_jsonl
from lmsmith.runs.metrics_log import read_metrics

pytestmark = pytest.mark.vllm

SHAPE = SHAPES["gpt2"]
RECIPE = f"""
seed = 3
[machine]
precision = "fp32"
threads = 1
[data]
conversations = ["talks.jsonl"]
documents = ["docs.jsonl"]
[data.splits]
demonstrations = 0.2
comparisons = 0.28
prompts = 0.2
test = 0.15
validation = 0.05
[tokenizer]
vocabulary_size = {TOKENIZER.vocabulary_size}
[pretrain]
tokens = 100_000
batch_tokens = 1024
optimiser.learning_rate = 3e-3
validation_documents = 2
[pretrain.model]
layers = {SHAPE.layers}
width = {SHAPE.width}
heads = {SHAPE.heads}
context = {SHAPE.context}
[sft]
epochs = 40
batch_tokens = 1024
min_steps = 0
optimiser.learning_rate = 3e-3
[rankings]
split = "comparisons"
max_prompts = 40
max_test_prompts = 10
samples = 2
[reward]
epochs = 1
batch_prompts = 8
min_steps = 0
[ppo]
iterations = 3
rollouts = 16
minibatch = 8
max_prompt_tokens = 60
max_new_tokens = 32
snapshots = 1
ptx_coefficient = 0.0
[evaluate]
max_prompts = 12
max_new_tokens = 32
frontier_prompts = 8
"""


def write_recipe(folder: Path) -> None:
    source = random.Random(5)
    texts = [{"text": " ".join(sentence(source) for _ in range(8))} for _ in range(80)]
    write_jsonl(folder / "talks.jsonl", conversations(160, 3, "z"))
    write_jsonl(folder / "docs.jsonl", texts)
    (folder / "own.toml").write_text(RECIPE)


def finished(folder: Path, *words: str) -> dict[str, Any]:
    """The stages of a whole run with vLLM."""
    options = ",".join(f'"{each}"' for each in SETTINGS.vllm_options)
    settings = [
        "generation.engine=vllm",
        f"generation.vllm_memory={SETTINGS.vllm_memory}",
        f"generation.vllm_requests={SETTINGS.vllm_requests}",
        f"generation.vllm_options=[{options}]",
    ]
    command = [sys.executable, "-m", "lmsmith", "run", "own.toml", "--folder", "run", "--json"]
    command += [word for each in settings for word in ("--set", each)]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*command, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)["stages"]
    return found


def check_run(folder: Path, stages: dict[str, Any]) -> None:
    """Every stage is done, vLLM's replies are in all three that draw, and nothing is left of it."""
    assert list(stages)[-4:] == ["rankings", "reward", "ppo", "evaluate"]
    assert stages["rankings"]["metrics"]["sampled_tokens"] > 200
    ranked = [row for _, row in read_jsonl(folder / "run/rankings/train.jsonl")]
    assert any("policy" in row["origins"] for row in ranked)
    steps = read_metrics(folder / "run/ppo/metrics.jsonl")
    versions = [row["rollout/weights_version"] for row in steps]
    assert versions == [versions[0], versions[0] + 1, versions[0] + 2]
    assert all(row["rollout/logprob_gap"] < 1e-3 for row in steps)
    metrics = stages["evaluate"]["metrics"]
    assert metrics["ppo.ended_share"] > 0.5
    assert abs(metrics["ppo.kl"]) < 1
    samples = [row for _, row in read_jsonl(folder / "run/evaluate/samples.jsonl")]
    assert any(word in json.dumps(samples) for word in WORDS)
    assert not list((folder / "run").rglob("vllm"))


def test_a_whole_recipe_starts_its_own_servers(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    check_run(tmp_path, finished(tmp_path))


def test_two_processes_share_a_server_that_runs(kinds: dict[str, Kind], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    url = f"generation.vllm_url={kinds['gpt2'].url}/v1"
    check_run(tmp_path, finished(tmp_path, "--processes", "2", "--set", url))
    record = json.loads((tmp_path / "run/ppo/stage.json").read_text())
    assert record["machine"]["processes"] == 2
