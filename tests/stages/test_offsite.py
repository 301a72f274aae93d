"""Offsite-tuning's stages: what each side keeps and sends, and that both continue to the bit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preference_world import conversations, make_tokenizer, sentence, stage_folder
from safetensors.torch import load_file

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_decoder, save_model
from lmsmith.models.offsite import plug, read_emulated
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.emulator import EmulatorConfig
from lmsmith.stages.emulator import run as make
from lmsmith.stages.offsite import OffsiteConfig
from lmsmith.stages.offsite import run as tune
from lmsmith.stages.sft import SFTConfig
from lmsmith.training import loop
from lmsmith.training.optimiser import OptimiserConfig
from tiny_models import random_decoder

TOKENIZER = make_tokenizer()
SHAPE = ModelConfig(6, 16, 2, 64, TOKENIZER.vocabulary_size)
SECRET = "zanzibar"
"""A word of the data's owner, which may not leave in any file."""

FAST = OptimiserConfig(learning_rate=0.01, weight_decay=0.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full model, texts to distil on, a task and conversations."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "full", random_decoder(SHAPE), TOKENIZER, {})
    source = random.Random(1)
    texts = (". ".join(sentence(source) for _ in range(6)) for _ in range(60))
    write_jsonl(folder / "texts.jsonl", ({"text": text} for text in texts))
    for name, count in (("train", 48), ("test", 24)):
        rows = [
            {
                "said": f"{SECRET} {sentence(source)} {('tea', 'rain')[n % 2]}",
                "label": ("no", "yes")[n % 2],
            }
            for n in range(count)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    (folder / "task.toml").write_text(
        'texts = ["said"]\nlabels = ["no", "yes"]\n'
        '[data]\ntrain = "train.jsonl"\ntest = ["test.jsonl"]\n'
    )
    write_jsonl(folder / "talks.jsonl", conversations(20, 3, SECRET))
    return folder


def emulator_config(world: Path) -> EmulatorConfig:
    return EmulatorConfig(
        model=str(world / "full"),
        adapter_layers=1,
        keep_layers=2,
        texts=(str(world / "texts.jsonl"),),
        tokens=1_536,
        batch_tokens=128,
        max_length=32,
        optimiser=FAST,
        warmup_steps=1,
        validations=2,
        validation_texts=3,
        test_texts=4,
    )


def offsite_config(world: Path) -> OffsiteConfig:
    return OffsiteConfig(
        model=str(world / "emulator/model"),
        task=str(world / "task.toml"),
        sft=SFTConfig(
            epochs=2, batch_tokens=128, max_length=64, min_steps=12, optimiser=FAST,
            warmup_steps=1, validations=1,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(world: Path) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(world / "emulator")
    return out, make(emulator_config(world), {}, out)


@pytest.fixture(scope="module")
def tuned(
    world: Path, made: tuple[StageFolder, dict[str, float]]
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(world / "offsite")
    return out, tune(offsite_config(world), {}, out)


def sent(folder: Path) -> list[Path]:
    """What is left once the stage is done, whose checkpoints are then removed."""
    return [p for p in folder.rglob("*") if p.is_file() and "checkpoints" not in p.parts]


def test_the_emulator_has_nothing_of_the_layers_left_out(
    made: tuple[StageFolder, dict[str, float]], world: Path
) -> None:
    out, metrics = made
    full, emulator = load_decoder(world / "full"), load_decoder(out / "model")
    assert (metrics["layers"], metrics["full_layers"]) == (4, 6) == (emulator.config.layers, 6)
    kept = {0: 0, 1: 1, 4: 2, 5: 3}  # layer of the full model → of the emulator
    tensors = [
        t for p in sent(out.path) if p.suffix == ".safetensors" for t in load_file(p).values()
    ]
    theirs, ours = full.state_dict(), emulator.state_dict()
    for name, value in theirs.items():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        if layer is not None and layer not in kept:
            assert not any(
                torch.equal(value, each) for each in tensors if each.shape == value.shape
            )
        elif layer in (None, 0, 5):  # embeddings and adapters
            inside = (
                name if layer is None else name.replace(f"blocks.{layer}", f"blocks.{kept[layer]}")
            )
            assert torch.equal(ours[inside], value), name
        else:  # what is between the adapters has learnt
            assert not torch.equal(
                ours[name.replace(f"blocks.{layer}", f"blocks.{kept[layer]}")], value
            )
    about = read_emulated(out / "model")
    assert (about.adapter_layers, about.layers) == (1, 6)
    words = "".join(p.read_text() for p in sent(out.path) if p.suffix != ".safetensors")
    assert str(world) not in words


def test_distillation_draws_the_states_to_the_full_models(
    made: tuple[StageFolder, dict[str, float]],
) -> None:
    out, metrics = made
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["state_error"] < 0.8 * rows[0]["state_error"]
    for prefix in ("", "undistilled_", "full_"):
        name = f"{prefix}test_bits_per_byte"
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["test_bits_per_byte"] != metrics["undistilled_test_bits_per_byte"]


def test_nothing_is_wrong_where_nothing_is_left_out(world: Path, tmp_path: Path) -> None:
    out = stage_folder(tmp_path / "emulator")
    make(replace(emulator_config(world), keep_layers=4, tokens=128), {}, out)
    (row,) = read_metrics(out / "metrics.jsonl")
    assert row["state_error"] == 0.0


def test_without_texts_the_layers_stay_and_that_is_said(world: Path, tmp_path: Path) -> None:
    out = stage_folder(tmp_path / "emulator")
    config = replace(emulator_config(world), texts=(), keep_layers=4)
    metrics = make(config, {}, out)
    assert metrics["layers"] == 6
    tokens = torch.tensor([[1, 5, 9, 3]])
    full = load_decoder(world / "full")
    assert torch.equal(load_decoder(out / "model")(tokens), full(tokens))
    assert any("no texts are given" in line for line in out.progress.said)  # type: ignore[attr-defined]


def test_only_the_adapters_are_kept_and_only_they_have_changed(
    tuned: tuple[StageFolder, dict[str, float]], world: Path
) -> None:
    out, metrics = tuned
    names = {str(each.relative_to(out.path)) for each in sent(out.path)}
    assert names == {
        "metrics.jsonl", "scores.json", "adapters/adapter.safetensors", "adapters/card.json",
        "adapters/config.json",
    }  # fmt: skip
    contents = b"".join(each.read_bytes() for each in sent(out.path))
    assert SECRET.encode() not in contents
    full, before = load_decoder(world / "full"), load_decoder(world / "full").state_dict()
    plug(full, out.path)
    changed = {n for n, value in full.state_dict().items() if not torch.equal(value, before[n])}
    assert {int(name.split(".")[1]) for name in changed if name.startswith("blocks.")} == {0, 5}
    assert all(name.startswith("blocks.") for name in changed)
    assert metrics["trained_parameters"] == sum(
        value.numel() for n, value in before.items() if n.startswith(("blocks.0.", "blocks.5."))
    )


def test_tuning_learns_the_task_and_counts_each_item(
    tuned: tuple[StageFolder, dict[str, float]],
) -> None:
    out, metrics = tuned
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    scores = json.loads((out / "scores.json").read_text())
    assert len(scores["before"]) == len(scores["after"]) == metrics["test_items"] == 24
    for name in ("before", "after"):
        assert metrics[f"{name}_accuracy"] == pytest.approx(sum(scores[name]) / 24)
    gained = metrics["after_accuracy"] - metrics["before_accuracy"]
    assert metrics["gain_accuracy"] == pytest.approx(gained)
    assert metrics["train_examples"] + metrics["validation_examples"] == 48


@pytest.mark.parametrize("stage", ["emulator", "offsite"])
def test_a_killed_run_ends_with_the_same_bits(
    stage: str,
    world: Path,
    made: tuple[StageFolder, dict[str, float]],
    tuned: tuple[StageFolder, dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = stage_folder(tmp_path / stage)
    (whole, expected), file = made, "model/model.safetensors"
    if stage == "offsite":
        (whole, expected), file = tuned, "adapters/adapter.safetensors"

    def go() -> dict[str, float]:
        if stage == "emulator":
            return make(emulator_config(world), {}, out)
        return tune(offsite_config(world), {}, out)

    for stop in (3, 5):
        asked = iter([None] * stop + [2])
        monkeypatch.setattr(loop, "stop_requested", lambda asked=asked: next(asked, None))
        with pytest.raises(Interrupted):
            go()
        torch.manual_seed(stop)
    monkeypatch.setattr(loop, "stop_requested", lambda: None)
    timed = ("tokens_per_second", "share_of_peak")
    found = go()
    assert {k: v for k, v in found.items() if k not in timed} == {
        k: v for k, v in expected.items() if k not in timed
    }
    assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_a_whole_model_is_tuned_to_compare_with(world: Path, tmp_path: Path) -> None:
    out = stage_folder(tmp_path / "offsite")
    config = replace(offsite_config(world), model=str(world / "full"), part="all", examples=12)
    metrics = tune(config, {}, out)
    assert metrics["train_examples"] == 12
    before, after = load_decoder(world / "full"), load_decoder(out / "model")
    assert metrics["trained_parameters"] == before.config.parameters
    others = after.state_dict()
    assert not any(torch.equal(value, others[n]) for n, value in before.state_dict().items())


def test_conversations_are_learnt_and_measured_by_their_held_out_part(
    world: Path, made: tuple[StageFolder, dict[str, float]], tmp_path: Path
) -> None:
    out = stage_folder(tmp_path / "offsite")
    config = replace(offsite_config(world), task=str(world / "talks.jsonl"), model="")
    metrics = tune(config, {"emulator": made[0].path}, out)
    assert metrics["train_examples"] > 10
    assert metrics["validation_bits_per_byte"] > 0
    assert "after_accuracy" not in metrics
    assert not (out / "scores.json").exists()


def test_mistakes_are_named(world: Path, tmp_path: Path) -> None:
    config = offsite_config(world)
    out = stage_folder(tmp_path / "offsite")
    with pytest.raises(UserError, match="is a model, and no emulator"):
        tune(replace(config, model=str(world / "full")), {}, out)
    with pytest.raises(UserError, match="the recipe has no emulator"):
        tune(replace(config, model=""), {}, out)
    with pytest.raises(UserError, match="template = 3: task task has 1"):
        tune(replace(config, template=3), {}, out)
    with pytest.raises(UserError, match=r"offsite\.sft\.batch_tokens = 100 is not a multiple"):
        tune(replace(config, sft=replace(config.sft, batch_tokens=100)), {}, out)
    with pytest.raises(UserError, match="leave no middle of 6 layers"):
        make(replace(emulator_config(world), adapter_layers=3), {}, out)
    wrong = OffsiteConfig(task="", sft=SFTConfig(adapter=AdapterConfig(rank=4)))
    assert [each.key for each in problems_in(wrong)] == ["task", "sft.adapter.rank"]
