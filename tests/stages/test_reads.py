"""Every stage reads no other files of the stages before it than the table of stages says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lmsmith.runs.identity import files_read
from lmsmith.runs.records import recorded_outputs
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.pipeline import load_stage_recipe, run_recipe
from lmsmith.stages.table import Stage

RECIPE = """
seed = 7
[machine]
threads = 1
[data]
conversations = ["talks.jsonl"]
[data.splits]
demonstrations = 0.3
comparisons = 0.2
prompts = 0.1
judge = 0.2
test = 0.1
validation = 0.1
[tokenizer]
vocabulary_size = 300
[pretrain]
tokens = 1024
batch_tokens = 256
validations = 1
[pretrain.model]
layers = 1
width = 16
heads = 1
context = 64
[sft]
batch_tokens = 256
validations = 1
[rankings]
max_prompts = 16
max_test_prompts = 8
max_new_tokens = 24
samples = 1
[reward]
[ppo]
iterations = 2
rollouts = 4
minibatch = 4
max_prompt_tokens = 32
max_new_tokens = 8
snapshots = 1
ptx_rows = 1
[judge_rankings]
split = "judge"
max_prompts = 16
max_test_prompts = 8
max_new_tokens = 24
samples = 1
[judge]
[evaluate]
max_conversations = 4
max_prompts = 4
max_new_tokens = 8
max_prompt_tokens = 32
frontier_prompts = 2
frontier_snapshots = 1
"""


def test_what_is_not_named_as_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["red", "blue", "green", "warm", "cold", "high", "low", "left", "right", "near"]
    talks = [
        [
            {"role": "user", "content": f"is {one} {two}?"},
            {"role": "assistant", "content": f"{two} {one} it is"},
        ]
        for one in words
        for two in words
    ]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in talks]
    (tmp_path / "talks.jsonl").write_text("".join(lines))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    recipe = load_stage_recipe("tiny.toml")
    run_recipe(recipe, tmp_path / "whole")

    plain = Stage.function

    def with_named_files_only(stage: Stage) -> Any:
        def run(config: Any, inputs: Mapping[str, Path], out: StageFolder) -> Any:
            given: dict[str, Path] = {}
            for role, folder in inputs.items():
                given[role] = tmp_path / "given" / stage.name / role / folder.name
                names = files_read(recorded_outputs(folder), stage.patterns(role))
                cards = [f"{Path(name).parent}/card.json" for name in names if "config" in name]
                for name in (*names, *cards):
                    copy = given[role] / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / name, copy)
            return plain(stage)(config, given, out)

        return run

    monkeypatch.setattr(Stage, "function", with_named_files_only)
    run_recipe(recipe, tmp_path / "named")
    for stage in recipe.stages:
        whole, named = (recorded_outputs(tmp_path / run / stage) for run in ("whole", "named"))
        for outputs in (whole, named):
            for name in [name for name in outputs if "card.json" in name]:
                del outputs[name]
        assert named == whole, stage
