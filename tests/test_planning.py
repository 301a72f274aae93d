"""Plans of training: GPUs, time and cost, and settings that make it fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lmsmith
from lmsmith import cli
from lmsmith.core.errors import UserError
from lmsmith.device import KNOWN_MEMORY, KNOWN_PEAKS
from lmsmith.models.presets import PRESETS
from lmsmith.planning import parse_gpus

RECIPE = """
[data]
documents = ["docs.jsonl"]
[tokenizer]
vocabulary_size = 1000
[pretrain]
tokens = 1_000_000
batch_tokens = 16_384
optimiser.name = "adamw"
model = { layers = 4, width = 256, heads = 4, context = 256 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "docs.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "own.toml").write_text(RECIPE)
    return str(tmp_path / "own.toml")


def test_the_tables_of_gpus_know_the_same() -> None:
    assert list(KNOWN_MEMORY) == list(KNOWN_PEAKS)


@pytest.mark.parametrize("text", ["8xH100", "8 x h100", "8XNVIDIA H100", "8*H100"])
def test_gpus_are_read(text: str) -> None:
    found = parse_gpus(text, nodes=4)
    assert (found.name, found.count) == ("H100", 32)
    assert (found.memory_bytes, found.peak) == (80e9, 989.5e12)
    assert parse_gpus("A100", memory=40).memory_bytes == 40e9


@pytest.mark.parametrize("text", ["8xH1", "0xH100", "", "eight", "-1xH100"])
def test_other_gpus_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--gpus") as error:
        parse_gpus(text)
    assert "8xH100" in error.value.fix


@pytest.mark.parametrize("name", ["gpt3-6.7b", "gpt3-175b"])
def test_gpt3s_sizes(name: str) -> None:
    (stage,) = lmsmith.plan(name, gpus="8xH100", nodes=2, share=0.5, price=2.0).stages
    shape = PRESETS[name].config
    assert stage.parameters == shape.parameters
    assert stage.tokens == 300e9
    speed = 16 * 989.5e12 * 0.5 / shape.training_flops_per_token()
    assert stage.tokens_per_second == pytest.approx(speed)
    assert stage.days == pytest.approx(300e9 / speed / 86_400)
    assert stage.cost == pytest.approx(stage.days * 24 * 16 * 2)


def test_a_tiny_models_speed_is_bound_by_launches(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 40 % of an H100's peak it would train on 35 million tokens a second."""
    (tiny,) = lmsmith.plan(recipe, gpus="H100").stages
    (few,) = lmsmith.plan(recipe, gpus="H100", set=["pretrain.micro_batch_size=1"]).stages
    (large,) = lmsmith.plan("gpt3-6.7b", gpus="8xH100").stages
    assert (tiny.bound_by, few.bound_by, large.bound_by) == ("launches", "launches", "peak")
    assert tiny.tokens_per_second is not None
    assert few.tokens_per_second is not None
    assert few.tokens_per_second < tiny.tokens_per_second / 10
    # 4 layers: a few hundred operations for 64 rows of 256 tokens
    assert 64 * 256 / 1e-5 / 1000 < tiny.tokens_per_second < 64 * 256 / 1e-5 / 100
    assert cli.main(["plan", recipe, "--gpus", "H100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "take longer to start than to compute" in said


def test_the_settings_that_are_named_make_it_fit(recipe: str) -> None:
    """From what costs least: FSDP2, fewer rows, then checkpointing."""
    seen: list[tuple[str, ...]] = []
    whole = lmsmith.plan(recipe, gpus="2xH100").stages[0]
    assert whole.fits
    least = ["pretrain.micro_batch_size=1", "pretrain.checkpoint_activations=true"]
    (smallest,) = lmsmith.plan(recipe, gpus="2xH100", set=[*least, "machine.sharding=on"]).stages
    for size in (0.95 * whole.memory.total, 0.6 * whole.memory.total, 1.01 * smallest.memory.total):
        memory = size / 1e9
        (stage,) = lmsmith.plan(recipe, gpus="2xH100", memory=memory).stages
        assert not stage.fits
        assert stage.fixes
        (again,) = lmsmith.plan(recipe, gpus="2xH100", memory=memory, set=stage.fixes).stages
        assert again.fits, stage.fixes
        seen.append(stage.fixes)
    assert "pretrain.checkpoint_activations=true" not in str(seen[:2])
    assert "pretrain.checkpoint_activations=true" in seen[-1]


def test_how_many_gpus_would_do() -> None:
    least = ["pretrain.checkpoint_activations=true", "machine.sharding=on"]
    (stage,) = lmsmith.plan("gpt2-xl", gpus="L4", memory=5).stages
    assert not stage.fits
    assert stage.fixes == ()
    for count, fits in ((stage.gpus_needed, True), (stage.gpus_needed - 1, False)):
        again = lmsmith.plan("gpt2-xl", gpus=f"{count}xL4", memory=5, set=least).stages[0]
        assert again.fits == fits
    assert lmsmith.plan("gpt2-xl", gpus="L4", memory=1).stages[0].gpus_needed == 0


def test_a_recipes_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "evening", "--gpus", "L4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = found["stages"]
    assert list(stages) == ["pretrain", "sft", "reward", "judge", "ppo"]
    for each in stages.values():
        kinds = dict(each["memory"])
        assert kinds.pop("total") == sum(kinds.values())
    ppo, sft = stages["ppo"]["memory"], stages["sft"]["memory"]
    assert ppo["optimiser"] == 2 * sft["optimiser"]
    assert ppo["cache"] > 0
    assert ppo["frozen"] > 0


def test_a_recipe_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "x.toml").write_text(RECIPE.partition("[pretrain]")[0])
    with pytest.raises(UserError, match="no stage of it is planned"):
        lmsmith.plan(str(tmp_path / "x.toml"), gpus="H100")


def test_it_is_printed(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", recipe, "--gpus", "2xA100", "--price", "1.5", "--memory", "0.07"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "own on 2 × A100, 70.0 MB each" in said
    assert "it fits with --set pretrain.micro_batch_size=" in said
    assert "at a cost of" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt4", "--gpus", "8xH100"], "gpt4"),
        (["gpt2", "--gpus", "8xH100", "--share", "40"], "--share 40"),
        (["gpt2", "--gpus", "8xH100", "--price=-1"], "--price -1"),
        (["gpt2", "--gpus", "8xH100", "--price=nan"], "--price nan"),
        (["gpt2", "--gpus", "8xH100", "--price=inf"], "--price inf"),
        (["gpt2", "--gpus", "8xH100", "--memory=nan"], "--memory nan"),
        (["gpt2", "--gpus", "8xH100", "--memory=inf"], "--memory inf"),
        (["gpt2", "--gpus", "8xH100", "--nodes", "0"], "--nodes 0"),
        (["gpt2", "--gpus", "8xH100", "--set", "pretrain.micro=1"], "pretrain.micro"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
