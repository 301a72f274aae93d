"""Distillation end to end on a tiny world: it learns, is compared, and continues to the bit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preference_world import (
    conversations,
    make_decoder,
    make_tokenizer,
    sentence,
    stage_folder,
    write_data,
    write_models,
)

from lmsmith.core.config import decode, problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_json
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_decoder
from lmsmith.models.shallow import kept_layers, shallow_copy
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.distil import DistilConfig, run
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.training import loop
from lmsmith.training.optimiser import OptimiserConfig
from tiny_models import random_decoder

TOKENIZER = make_tokenizer()
CONFIG = DistilConfig(
    student=ModelConfig(1, 16, 2, 32),
    teacher_weight=0.9,
    tokens=1_280,
    batch_tokens=64,
    optimiser=OptimiserConfig(learning_rate=0.02),
    warmup_steps=2,
    validations=2,
    validation_texts=3,
    test_texts=6,
)


def documents(count: int, seed: int) -> list[dict[str, object]]:
    source = random.Random(seed)
    texts = (". ".join(sentence(source) for _ in range(5)) for _ in range(count))
    return [{"text": text, "id": f"{seed}-{n}", "source": "web"} for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    data = write_data(
        folder / "data",
        documents=documents(30, 1),
        validation_documents=documents(4, 2),
        test_documents=documents(8, 3),
        demonstrations=conversations(12, 4, "d"),
        validation=conversations(4, 5, "v"),
        test=conversations(8, 6, "t"),
    )
    write_json(data / "mixture.json", {})
    sharp = random_decoder(ModelConfig(2, 16, 2, 64, TOKENIZER.vocabulary_size))
    models = write_models(folder, TOKENIZER, pretrain=sharp)
    return {"data": data, **models}


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("made") / "distil")
    return out, run(CONFIG, inputs, out)


def test_it_learns_and_is_measured_beside_the_same_student_alone(
    made: tuple[StageFolder, dict[str, float]],
) -> None:
    out, metrics = made
    with_teacher = read_metrics(out / "metrics.jsonl")
    alone = read_metrics(out / "without_teacher" / "metrics.jsonl")
    assert len(with_teacher) == len(alone) == metrics["steps"] == 20
    assert with_teacher[-1]["divergence"] < 0.8 * with_teacher[0]["divergence"]
    assert all(row["divergence"] == 0 for row in alone)
    # the first losses are of the same weights and the same batch
    assert with_teacher[0]["bits_per_byte"] == pytest.approx(alone[0]["bits_per_byte"], rel=1e-5)
    for prefix in ("", "teacher_", "without_teacher_", "gain_"):
        name = f"{prefix}test_bits_per_byte" if prefix != "gain_" else "gain_bits_per_byte"
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    difference = metrics["without_teacher_test_bits_per_byte"] - metrics["test_bits_per_byte"]
    assert metrics["gain_bits_per_byte"] == pytest.approx(difference)
    assert metrics["test_texts"] == 6
    student = load_decoder(out / "model")
    assert student.config.layers == 1
    assert student.config.vocabulary_size == TOKENIZER.vocabulary_size
    assert load_decoder(out / "without_teacher" / "model").config == student.config


def test_the_comparison_changes_nothing_in_the_student(
    made: tuple[StageFolder, dict[str, float]], inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = stage_folder(tmp_path / "distil")
    metrics = run(replace(CONFIG, compare=False), inputs, out)
    assert metrics["test_bits_per_byte"] == made[1]["test_bits_per_byte"]
    assert "gain_bits_per_byte" not in metrics
    assert (out / "model/model.safetensors").read_bytes() == (
        made[0] / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.1},
        {"top_k": 5, "divergence": "reverse_kl", "temperature": 2.0},
        {"text": "demonstrations", "written_texts": 10, "max_new_tokens": 8},
        {
            "keep_layers": 1,
            "micro_batch_size": 1,
            "batch_tokens": 128,
            "max_length": 32,
            "tokens": 768,
        },
    ],
)
def test_a_killed_run_ends_with_the_same_bits(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    config = replace(CONFIG, **{"tokens": 384, **change})  # type: ignore[arg-type]
    whole, cut = stage_folder(tmp_path / "whole"), stage_folder(tmp_path / "cut")
    expected = untimed(run(config, inputs, whole))
    for stop in (2, 5):  # with the teacher, then without
        asked = iter([None] * stop + [2])
        monkeypatch.setattr(loop, "stop_requested", lambda asked=asked: next(asked, None))
        with pytest.raises(Interrupted):
            run(config, inputs, cut)
        torch.manual_seed(stop)
    monkeypatch.setattr(loop, "stop_requested", lambda: None)
    assert untimed(run(config, inputs, cut)) == expected
    for name in ("model/model.safetensors", "without_teacher/model/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in ("tokens_per_second", "share_of_peak")}


@pytest.mark.parametrize("text", ["documents", "demonstrations"])
def test_it_learns_from_texts_that_the_teacher_writes(
    inputs: dict[str, Path], tmp_path: Path, text: str
) -> None:
    out = stage_folder(tmp_path / "distil")
    config = replace(CONFIG, written_texts=8, max_new_tokens=12, teacher_weight=0.0, compare=False)
    metrics = run(replace(config, text=text), inputs, out)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (out / "written.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(1 <= len(row["reply"]) <= 12 for row in rows)
    learnt = sum(len(row["reply"]) for row in rows)
    steps = read_metrics(out / "metrics.jsonl")
    assert sum(row["target_tokens"] for row in steps) == pytest.approx(
        learnt * metrics["passes"], rel=0.3
    )
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_teacher_is_the_recipes_or_a_named_one(inputs: dict[str, Path], tmp_path: Path) -> None:
    named = tmp_path / "other"
    write_models(named, TOKENIZER, big=make_decoder(TOKENIZER, 9))
    out = stage_folder(tmp_path / "distil")
    config = replace(CONFIG, teacher=str(named / "big" / "model"), tokens=64, compare=False)
    metrics = run(config, {"data": inputs["data"]}, out)
    assert metrics["teacher_parameters"] > metrics["parameters"]
    with pytest.raises(UserError, match="no teacher"):
        run(CONFIG, {"data": inputs["data"]}, stage_folder(tmp_path / "none"))


def test_a_recipe_without_a_teacher_is_refused_before_anything_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    (tmp_path / "talks.jsonl").write_text('{"messages": []}')
    recipe.write_text('[data]\nconversations = ["talks.jsonl"]\n[distil]\n')
    with pytest.raises(UserError, match=r"distil\.teacher"):
        load_stage_recipe(recipe)


def test_a_batch_that_is_not_whole_rows_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a multiple of a row's 32 tokens"):
        run(replace(CONFIG, batch_tokens=50), inputs, stage_folder(tmp_path / "distil"))


def test_settings_are_checked_and_a_preset_is_written_out() -> None:
    assert [each.key for each in problems_in(DistilConfig(store="here"))] == ["store"]
    config, problems = decode(DistilConfig, {"student": {"preset": "gpt2"}}, "distil")
    assert config is not None
    assert not problems
    assert config.student.width == 768


def test_layers_that_are_kept() -> None:
    assert kept_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert kept_layers(5, 5) == [0, 1, 2, 3, 4]
    assert kept_layers(5, 1) == [0]
    with pytest.raises(UserError, match="6 of 5"):
        kept_layers(5, 6)
    config = ModelConfig(4, 16, 2, 16, 11, attention_pattern=("dense", "banded"), window=4)
    whole = random_decoder(config)
    tokens = torch.tensor([[1, 5, 2, 9, 10, 3]])
    torch.testing.assert_close(shallow_copy(whole, 4)(tokens), whole(tokens))
    student = shallow_copy(whole, 2)
    assert student.config.attention_pattern == ("dense", "banded")
    for part in ("attention.output.weight", "feed_forward_norm.bias"):
        ours, theirs = student.state_dict(), whole.state_dict()
        assert torch.equal(ours[f"blocks.1.{part}"], theirs[f"blocks.3.{part}"])
