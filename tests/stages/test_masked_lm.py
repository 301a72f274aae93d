"""BERT's training end to end on a tiny corpus: it learns, compares, and resumes to the bit."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_world import sentence, stage_folder, write_data

from lmsmith.core.config import decode, problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.rows import read_documents
from lmsmith.encoders import embed, fill_mask
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_model, load_tokenizer, save_model
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.models.presets import bert
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.signals import StopSignal
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.masked_lm import MaskedLMStageConfig, held_out_batches, run
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.stages.pretrain import PretrainConfig
from lmsmith.tokenizers.word_piece import train_word_piece
from lmsmith.training import masked_lm
from lmsmith.training.optimiser import OptimiserConfig

CONFIG = MaskedLMStageConfig(
    model=replace(bert(1, 16, 2, 32, 0), dropout=0.1),
    tokens=5_120,
    batch_tokens=256,
    optimiser=OptimiserConfig(name="muon", learning_rate=0.01),
    warmup_steps=2,
    validations=2,
    validation_documents=3,
)


def documents(count: int, seed: int) -> list[dict[str, object]]:
    source = random.Random(seed)
    texts = [". ".join(sentence(source) for _ in range(6)) for _ in range(count)]
    return [{"text": text, "id": f"{seed}-{n}", "source": "web"} for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    rows = documents(30, 1)
    data = write_data(folder / "data", documents=rows, validation_documents=documents(5, 2))
    write_json(data / "mixture.json", {})
    tokenizer = train_word_piece([str(row["text"]) for row in rows], 60)
    tokenizer.save(folder / "tokenizer")
    decoder = Decoder(ModelConfig(1, 16, 2, 32, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "pretrain" / "model", decoder, tokenizer, {})
    return {"data": data, "tokenizer": folder / "tokenizer", "decoder": folder / "pretrain"}


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("stage") / "masked_lm")
    return out, run(CONFIG, inputs, out)


def untimed(out: StageFolder) -> list[dict[str, float]]:
    timed = {"seconds", "tokens_per_second", "share_of_peak"}
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def stop_after(calls: int) -> Callable[..., Any]:
    real, count = masked_lm.masked_losses, 0

    def stopping(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    return stopping


def test_it_learns_and_compares(made: tuple[StageFolder, dict[str, float]]) -> None:
    out, metrics = made
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert {"next_sentence_loss", "next_sentence_accuracy"} <= set(rows[0])
    assert [masked_lm.ACCURACY in row for row in rows].count(True) == 2
    for name in ("masked", "unigram", "decoder"):
        assert 0 <= metrics[f"{name}_accuracy"] <= 1
        assert metrics[f"{name}_loss"] > 0
    assert metrics["masked_loss"] < metrics["decoder_loss"]  # which has learnt nothing
    model = load_model(out / "model")
    assert isinstance(model, MaskedLM)
    assert model.config.next_sentence
    assert metrics["parameters"] == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("stops", [[3], [1, 9, 4]])
def test_a_stopped_run_ends_with_the_same_bits(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    stops: list[int],
) -> None:
    out = stage_folder(tmp_path / "masked_lm")
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masked_lm, "masked_losses", stop_after(stop))
            with pytest.raises(Interrupted), StopSignal():
                run(CONFIG, inputs, out)
        torch.manual_seed(0)
    with StopSignal():
        run(CONFIG, inputs, out)
    assert untimed(out) == untimed(made[0])
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (made[0] / name).read_bytes()


def test_its_model_fills_masks_and_embeds(made: tuple[StageFolder, dict[str, float]]) -> None:
    model = made[0] / "model"
    found = fill_mask(model, "I like [MASK] and [MASK]", top=3)
    assert len(found.masks) == 2
    assert all(len(mask.candidates) == 3 for mask in found.masks)
    assert embed(model, ["tea", "rain"]).found.vectors.shape == (2, 16)


def test_without_pairs_and_with_whole_words(inputs: dict[str, Path], tmp_path: Path) -> None:
    plain = replace(CONFIG, next_sentence=False, whole_words=True, tokens=1024)
    out = stage_folder(tmp_path / "masked_lm")
    inputs = {name: path for name, path in inputs.items() if name != "decoder"}
    metrics = run(plain, inputs, out)
    assert "decoder_accuracy" not in metrics
    assert "next_sentence_loss" not in read_metrics(out / "metrics.jsonl")[0]


def test_the_commonest_token_is_one_that_can_be_hidden(
    made: tuple[StageFolder, dict[str, float]], inputs: dict[str, Path]
) -> None:
    """Every document has [CLS] and [SEP], and neither is ever hidden."""
    out, metrics = made
    tokenizer = load_tokenizer(inputs["tokenizer"])
    held_out = held_out_batches(CONFIG, inputs["data"], tokenizer, 32, stage_folder(out / "again"))
    targets = np.concatenate([each.targets_bt[each.targets_bt != NO_TARGET] for each in held_out])
    documents = read_documents(inputs["data"] / "documents.jsonl")
    encoded = tokenizer.encode_batch([each.text for each in documents])
    counts = np.bincount(np.concatenate(encoded), minlength=tokenizer.vocabulary_size)
    assert metrics["unigram_accuracy"] == np.mean(targets == counts.argmax())
    log_probs = np.log((counts + 1) / (counts + 1).sum())
    assert metrics["unigram_loss"] == pytest.approx(-log_probs[targets].mean(), rel=1e-5)


@pytest.mark.parametrize(("context", "vocabulary"), [(31, 0), (32, 1)])
def test_a_decoder_that_cannot_read_the_rows_is_not_compared(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    context: int,
    vocabulary: int,
) -> None:
    tokenizer = load_tokenizer(inputs["tokenizer"])
    decoder = Decoder(ModelConfig(1, 16, 2, context, tokenizer.vocabulary_size + vocabulary))
    decoder.initialise(torch.Generator().manual_seed(0))
    save_model(tmp_path / "pretrain" / "model", decoder, tokenizer, {})
    said: list[str] = []
    monkeypatch.setattr(QuietProgress, "say", lambda _, text: said.append(text))
    out = stage_folder(tmp_path / "masked_lm")
    metrics = run(replace(CONFIG, tokens=512), inputs | {"decoder": tmp_path / "pretrain"}, out)
    assert "masked_accuracy" in metrics
    assert "decoder_accuracy" not in metrics
    assert [line for line in said if "masked_lm: the decoder of pretrain" in line]


def test_a_tokenizer_without_masks_is_refused_when_the_recipe_is_read(
    inputs: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match=r"tokenizer.kind = .*bpe"):
        load_stage_recipe("bert", ["tokenizer.kind=bpe"])
    load_stage_recipe("bert", ["tokenizer.kind=bpe", f"tokenizer.load={inputs['tokenizer']}"])


def test_settings_that_contradict_are_named() -> None:
    wrong = replace(CONFIG, mask_share=0.95, random_share=0.1, batch_tokens=100)
    assert [each.key for each in problems_in(wrong)] == ["mask_share", "batch_tokens"]
    causal = replace(CONFIG, model=ModelConfig(1, 16, 2, 32))
    assert [each.key for each in problems_in(causal)] == ["model.causal"]
    plain = replace(CONFIG, model=replace(CONFIG.model, segments=0))
    assert [each.key for each in problems_in(plain)] == ["next_sentence"]
    encoder = PretrainConfig(model=CONFIG.model)
    assert "the stage masked_lm makes encoders" in str(problems_in(encoder)[0])


def test_a_recipes_model_begins_with_tiny_bert() -> None:
    table = MaskedLMStageConfig.expand({"model": {"layers": 2}})
    config, problems = decode(MaskedLMStageConfig, table, "test")
    assert not problems
    assert config is not None
    assert (config.model.layers, config.model.causal, config.model.segments) == (2, False, 2)


def test_held_out_tokens_are_hidden_as_in_the_paper_whatever_training_hides(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(inputs["tokenizer"])
    hidden = []
    for fraction in (0.15, 0.5):
        config = replace(CONFIG, masked_fraction=fraction)
        out = stage_folder(tmp_path / str(fraction))
        batches = held_out_batches(config, inputs["data"], tokenizer, 32, out)
        hidden.append([batch.targets_bt.tolist() for batch in batches])
        targets = sum(int((batch.targets_bt != NO_TARGET).sum()) for batch in batches)
        tokens = sum(int(batch.lengths_b.sum()) for batch in batches)
        assert targets / tokens == pytest.approx(0.15, abs=0.03)
    assert hidden[0] == hidden[1]


def test_the_first_updates_read_short_rows(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths, real = [], masked_lm.masked_losses

    def watched(model: MaskedLM, batch: Any) -> Any:
        widths.append(batch.tokens_bt.shape)
        assert int(batch.lengths_b.max()) <= batch.tokens_bt.shape[1]
        return real(model, batch)

    monkeypatch.setattr(masked_lm, "masked_losses", watched)
    config = replace(CONFIG, short_context=16, short_share=0.75)
    metrics = run(config, inputs, stage_folder(tmp_path / "masked_lm"))
    assert widths == [(16, 16)] * 15 + [(8, 32)] * 5
    assert load_model(tmp_path / "masked_lm" / "model").config.model.context == 32
    assert metrics["steps"] == 20


@pytest.mark.parametrize("short", [4, 7, 24, 64])
def test_a_short_row_that_does_not_fit_is_refused(short: int) -> None:
    (problem,) = problems_in(replace(CONFIG, short_context=short))
    assert "short_context" in str(problem)
    assert "8 to 32" in str(problem)
