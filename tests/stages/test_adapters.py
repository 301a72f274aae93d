"""The stages on a model from elsewhere, by adapters: base, SFT, reward, PPO, evaluate, export."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from preference_world import (
    conversations,
    ending_decoder,
    make_tokenizer,
    sentence,
    stage_folder,
    write_data,
    write_models,
)
from safetensors.torch import load_file

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import read_model
from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.folder import load_decoder, load_scalar_model
from lmsmith.rlhf.ppo import PPOConfig
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import base, evaluate, ppo, reward, sft
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.training import loop
from lmsmith.training.optimiser import OptimiserConfig

TOKENIZER = make_tokenizer()
ADAPTER = AdapterConfig(rank=4, alpha=16.0)
FAST = OptimiserConfig(learning_rate=0.02, weight_decay=0.0)
SFT = sft.SFTConfig(
    epochs=10, batch_tokens=256, max_length=32, adapter=ADAPTER, optimiser=FAST, warmup_steps=2
)
REWARD = reward.RewardConfig(
    epochs=3, batch_prompts=8, adapter=ADAPTER, optimiser=FAST, warmup_steps=2
)
PPO = PPOConfig(
    iterations=2,
    rollouts=8,
    minibatch=8,
    ptx_coefficient=0.0,
    max_new_tokens=10,
    max_prompt_tokens=40,
    snapshots=1,
    adapter=ADAPTER,
    optimiser=FAST,
    value_optimiser=FAST,
)
EVALUATE = evaluate.EvaluateConfig(
    max_prompts=4, max_conversations=4, min_new_tokens=1, max_new_tokens=20, frontier_prompts=2
)
FOLDERS = ("sft/model", "reward/model", "ppo/model", "ppo/value", "ppo/snapshots/step-000001")


def rankings(count: int, seed: int) -> list[dict[str, object]]:
    """Replies in which tea is liked better than rain."""
    source = random.Random(seed)
    return [
        {
            "prompt": [{"role": "user", "content": sentence(source)}],
            "responses": [f"{sentence(source)} rain rain", f"{sentence(source)} tea tea"],
            "ranks": [2, 1],
        }
        for _ in range(count)
    ]


def inputs_of(run: Path, **stages: str) -> dict[str, Path]:
    return {role: run / stage for role, stage in stages.items()}


def run_stages(run: Path, stop: str = "") -> dict[str, dict[str, float]]:
    """The whole run; a stage named by ``stop`` is stopped after its first step and continued."""
    calls = {
        "base": (base.run, base.BaseConfig(str(run.parent / "outside/first/model")), {}),
        "sft": (sft.run, SFT, {"data": "data", "base": "base"}),
        "reward": (reward.run, REWARD, {"rankings": "rankings", "base": "sft"}),
        "ppo": (ppo.run, PPO, {"data": "data", "policy": "sft", "reward": "reward"}),
        "evaluate": (
            evaluate.run,
            EVALUATE,
            {name: name for name in ("data", "base", "sft", "rankings", "reward", "ppo")},
        ),
    }
    found = {}
    for name, (function, config, roles) in calls.items():
        out = stage_folder(run / name)
        if name == stop:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "stop_requested", lambda: 2)
                with pytest.raises(Interrupted):
                    function(config, inputs_of(run, **roles), out)
        found[name] = function(config, inputs_of(run, **roles), out)  # type: ignore[operator]
    return found


def prepare(folder: Path) -> Path:
    data = {
        "demonstrations": conversations(20, 1, "a"),
        "validation": conversations(4, 2, "b"),
        "prompts": conversations(12, 3, "c"),
        "test": conversations(6, 4, "d"),
    }
    write_data(folder / "run/data", **data)
    splits = {"train": rankings(60, 5), "validation": rankings(10, 6), "test": rankings(30, 7)}
    write_data(folder / "run/rankings", **splits)
    write_models(folder / "outside", TOKENIZER, first=ending_decoder(TOKENIZER, context=64))
    return folder / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    run = prepare(tmp_path_factory.mktemp("adapters"))
    return run, run_stages(run)


def rows_of(folder: Path) -> list[dict[str, float]]:
    return read_metrics(StageFolder.metrics_log(stage_folder(folder)).path)


def test_adapters_learn_and_the_base_stays(made: tuple[Path, dict[str, dict[str, float]]]) -> None:
    run, metrics = made
    first = load_decoder(run.parent / "outside/first/model")
    assert all(
        torch.equal(value, load_decoder(run / "base/model").state_dict()[name])
        for name, value in first.state_dict().items()
    )
    assert metrics["base"]["parameters"] == first.config.parameters
    losses = [row["loss"] for row in rows_of(run / "sft")]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.1
    assert metrics["reward"]["validation_accuracy"] > 0.8
    policy = rows_of(run / "ppo")
    assert policy[0]["objective/kl"] == 0.0
    assert policy[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert policy[-1]["objective/kl"] != 0.0
    for name in FOLDERS:
        names = set(load_file(run / name / "adapter.safetensors"))
        assert names, name
        assert not [tensor for tensor in names if "embedding" in tensor or "norm" in tensor]
        assert not (run / name / "model.safetensors").exists()


def test_evaluation_measures_the_base_beside_what_was_made_of_it(
    made: tuple[Path, dict[str, dict[str, float]]],
) -> None:
    _, metrics = made
    found = metrics["evaluate"]
    assert found["sft.reply_perplexity"] < found["base.reply_perplexity"]
    accuracy, low, high = (found[f"reward.accuracy{end}"] for end in ("", "_low", "_high"))
    assert accuracy > 0.5
    assert low <= accuracy <= high  # where all pairs are right, so are all resamples
    assert {"ppo.kl", "ppo.win_rate_by_reward", "base.bits_per_byte"} - set(found) == {
        "base.bits_per_byte"  # there are no documents here
    }


def test_an_export_is_one_model(
    made: tuple[Path, dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    run, _ = made
    model = read_model(run)
    assert model.source.path == run / "ppo/model"
    export(model, tmp_path / "hf", "hf")
    again = read_model(tmp_path / "hf").decoder
    tokens = torch.randint(0, TOKENIZER.vocabulary_size, (2, 9))
    torch.testing.assert_close(again(tokens), load_decoder(run / "ppo/model")(tokens))
    assert not torch.allclose(again(tokens), load_decoder(run / "sft/model")(tokens))


@pytest.mark.parametrize("stop", ["sft", "reward", "ppo"])
def test_a_stopped_run_ends_with_the_same_bits(
    made: tuple[Path, dict[str, dict[str, float]]], tmp_path: Path, stop: str
) -> None:
    run = prepare(tmp_path)
    run_stages(run, stop)
    for name in FOLDERS:
        file = f"{name}/adapter.safetensors"
        assert (run / file).read_bytes() == (made[0] / file).read_bytes(), name
    assert (
        load_scalar_model(run / "ppo/value").shift == load_scalar_model(run / "reward/model").shift
    )


def recipe(folder: Path, *tables: str, ptx: float = 0.0) -> Path:
    settings = {
        "data": 'conversations = ["talks.jsonl"]',
        "tokenizer": "vocabulary_size = 300",
        "pretrain": "tokens = 1000",
        "base": f'model = "{folder / "outside/first/model"}"',
        "ppo": f"ptx_coefficient = {ptx}",
    }
    text = "".join(f"[{name}]\n{settings.get(name, '')}\n" for name in tables)
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return folder / "own.toml"


def test_a_recipe_begins_with_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    found = load_stage_recipe(recipe(tmp_path, "data", "base", "sft"))
    assert list(found.stages) == ["data", "base", "sft"]
    with pytest.raises(UserError, match="sft: needs the stage pretrain or base"):
        load_stage_recipe(recipe(tmp_path, "data", "sft"))
    both = recipe(tmp_path, "data", "tokenizer", "pretrain", "base", "sft")
    with pytest.raises(UserError, match="has pretrain and base, of which it needs one"):
        load_stage_recipe(both)
    stages = ("data", "base", "sft", "rankings", "reward", "ppo")
    assert "ppo" in load_stage_recipe(recipe(tmp_path, *stages)).stages
    with pytest.raises(UserError, match="PPO-ptx reads the text of the stage pretrain"):
        load_stage_recipe(recipe(tmp_path, *stages, ptx=1.0))


def test_a_base_that_is_nowhere_is_a_problem_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fetch it: lmsmith pull smollm2-135m"):
        base.BaseConfig().external_files()
    assert problems_in(base.BaseConfig(""))[0].key == "model"
