"""Pretraining end to end on a tiny corpus: it learns, resumes to the bit, and refuses nonsense."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_world import make_tokenizer, sentence, stage_folder, write_data

from lmsmith.core.config import decode, encode, problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.corpus.shards import TokenShards
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_decoder
from lmsmith.models.presets import PRESETS
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.signals import StopSignal
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.pretrain import PretrainConfig, mixture_shares, run, tokenize_sources
from lmsmith.tokenizers import Tokenizer
from lmsmith.training import language_model
from lmsmith.training.optimiser import OptimiserConfig

TOKENIZER = make_tokenizer()
CONFIG = PretrainConfig(
    model=ModelConfig(layers=1, width=16, heads=2, context=32, dropout=0.1),
    tokens=2_560,
    batch_tokens=128,
    optimiser=OptimiserConfig(name="muon", learning_rate=0.01),
    warmup_steps=2,
    validations=2,
    validation_documents=3,
)


def documents(count: int, seed: int) -> list[dict[str, object]]:
    source = random.Random(seed)
    return [
        {
            "text": ". ".join(sentence(source) for _ in range(6)),
            "id": f"{seed}-{number}",
            "source": ("web", "books")[number % 3 == 0],
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    data = write_data(
        folder / "data", documents=documents(30, 1), validation_documents=documents(5, 2)
    )
    write_json(data / "mixture.json", {"books": 2.0})
    TOKENIZER.save(folder / "tokenizer")
    return {"data": data, "tokenizer": folder / "tokenizer"}


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("stage") / "pretrain")
    return out, run(CONFIG, inputs, out)


def untimed(out: StageFolder) -> list[dict[str, float]]:
    timed = {"seconds", "tokens_per_second", "share_of_peak"}
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def stop_after(calls: int) -> Callable[..., Any]:
    """`accumulate_gradients` that is told to stop, as by ``kill``, in one of its calls."""
    real, count = language_model.accumulate_gradients, 0

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    return stopping


def test_it_learns_and_reports(made: tuple[StageFolder, dict[str, float]]) -> None:
    out, metrics = made
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.0
    looks = [row["validation/bits_per_byte"] for row in rows if "validation/bits_per_byte" in row]
    assert len(looks) == 2
    assert looks[1] < looks[0]
    assert metrics["validation_bits_per_byte"] == looks[-1]
    assert metrics["steps"] == 20
    assert metrics["compiled"] == 0.0
    names = "loss bits_per_byte learning_rate gradient_norm tokens_per_second share_of_peak"
    assert set(names.split()) <= set(rows[0])
    decoder = load_decoder(out / "model")
    assert decoder.config == replace(CONFIG.model, vocabulary_size=TOKENIZER.vocabulary_size)
    assert metrics["parameters"] == sum(p.numel() for p in decoder.parameters())
    assert Tokenizer.load(out / "model").encode("tea") == TOKENIZER.encode("tea")
    card = read_json(out / "model/card.json")
    assert isinstance(card, dict)
    assert card["metrics"] == metrics


def test_the_shards_hold_each_document_of_each_source(
    made: tuple[StageFolder, dict[str, float]], inputs: dict[str, Path], tmp_path: Path
) -> None:
    out, metrics = made
    shards = [TokenShards.load(path) for path in sorted((out / "shards").iterdir())]
    assert [len(each) for each in shards] == [10, 20]  # books, web
    texts = sorted(str(row["text"]) for row in documents(30, 1))
    found = [TOKENIZER.decode(each.tokens[a + 1 : b - 1].tolist())
             for each in shards
             for a, b in zip(each.offsets, each.offsets[1:], strict=False)]  # fmt: skip
    assert sorted(found) == texts
    assert metrics["corpus_bytes"] == sum(len(text.encode()) for text in texts)
    assert metrics["corpus_tokens"] == sum(each.total_tokens for each in shards)
    sources = tokenize_sources(inputs["data"] / "documents.jsonl", TOKENIZER, tmp_path)
    shares = mixture_shares(sources, {"books": 2.0})
    assert shares == [2.0 * shards[0].total_tokens, 1.0 * shards[1].total_tokens]


@pytest.mark.parametrize("stops", [[3], [1, 9, 4]])
def test_a_stopped_run_ends_with_the_same_bits(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    stops: list[int],
) -> None:
    out = stage_folder(tmp_path / "pretrain")
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_model, "accumulate_gradients", stop_after(stop))
            with pytest.raises(Interrupted), StopSignal():
                run(CONFIG, inputs, out)
        torch.manual_seed(0)
    with StopSignal():
        run(CONFIG, inputs, out)
    assert untimed(out) == untimed(made[0])
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (made[0] / name).read_bytes()


def test_a_few_rows_at_a_time_and_checkpointing_change_next_to_nothing(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    plain = replace(CONFIG, model=replace(CONFIG.model, dropout=0.0), tokens=640)
    losses = []
    for name, config in (
        ("plain", plain),
        ("parts", replace(plain, micro_batch_size=1)),
        ("checkpointed", replace(plain, checkpoint_activations=True)),
    ):
        out = stage_folder(tmp_path / name)
        run(config, inputs, out)
        losses.append([row["loss"] for row in untimed(out)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[2] == losses[0]


def test_no_documents_are_one_clear_message(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", documents=[], validation_documents=[])
    write_json(data / "mixture.json", {})
    with pytest.raises(UserError, match=r"documents\.jsonl holds no documents"):
        run(CONFIG, {**inputs, "data": data}, stage_folder(tmp_path / "pretrain"))


def test_a_loss_that_is_no_number_stops_and_says_where(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    wild = replace(CONFIG, optimiser=OptimiserConfig(learning_rate=1e30, gradient_clip=0.0))
    out = stage_folder(tmp_path / "pretrain")
    with pytest.raises(UserError, match=r"pretrain, step \d+: .* is (nan|inf)"):
        run(wild, inputs, out)
    assert not (out / "model").exists()


def test_settings_out_of_range_are_all_named() -> None:
    config = PretrainConfig(tokens=0, batch_tokens=1000, micro_batch_size=-1, final_lr_fraction=2.0,
                            decay_fraction=-0.5)  # fmt: skip
    assert [each.key for each in problems_in(config)] == [
        "tokens",
        "micro_batch_size",
        "final_lr_fraction",
        "decay_fraction",
        "batch_tokens",
    ]
    assert problems_in(PretrainConfig()) == problems_in(CONFIG) == []


def test_a_preset_is_a_shape_that_other_keys_change(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    small = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "ffn_width": 24, "context": 32}
    settings = {"tokens": 256, "batch_tokens": 128, "model": {"preset": "tiny-llama", **small}}
    config, problems = decode(PretrainConfig, settings, "pretrain")
    assert problems == []
    assert config is not None
    assert config.model == replace(PRESETS["tiny-llama"].config, vocabulary_size=0, **small)
    recorded = encode(config)["model"]
    assert recorded["norm"] == "rms"
    assert "preset" not in recorded
    out = stage_folder(tmp_path / "pretrain")
    run(config, inputs, out)
    written = read_json(out.path / "model" / "config.json")["model"]
    assert written == recorded | {"vocabulary_size": TOKENIZER.vocabulary_size}
    assert load_decoder(out.path / "model").config.activation == "swiglu"


def test_an_unknown_preset_is_named_with_those_that_there_are() -> None:
    config, problems = decode(PretrainConfig, {"model": {"preset": "gpt5"}}, "pretrain")
    assert config is None
    assert [problem.key for problem in problems] == ["pretrain.model.preset"]
    assert "gpt2-xl, gpt3-125m" in str(problems[0])
    assert "models presets" in problems[0].fix
