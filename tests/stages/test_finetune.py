"""Fine-tuning end to end on tiny tables: it learns, is measured, and continues to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import LineProgress, QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.labelled.task import locate_task, read_examples
from lmsmith.evaluation.classification import measure_predictions
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_classifier, load_decoder, load_tokenizer, save_model
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.finetune import (
    FinetuneConfig,
    alike_tokens,
    make_classifier,
    padding_share,
    run,
)
from lmsmith.tokenizers import Tokenizer
from lmsmith.training import loop
from lmsmith.training.classification import EncodedExample
from lmsmith.training.optimiser import OptimiserConfig
from tiny_models import TEXTS

GOOD = ["good", "fine", "lovely", "warm"]
BAD = ["bad", "poor", "cold", "grim"]
THINGS = ["house", "river", "dog", "cat", "sky", "sea", "mat", "sister"]
ROWS = [
    {"text": f"the {thing} is {word}", "label": "yes" if word in GOOD else "no"}
    for word in (*GOOD, *BAD)
    for thing in THINGS
]
CONFIG = FinetuneConfig(
    epochs=20,
    lm_weight=0.1,
    validation_share=0.25,
    batch_size=8,
    min_steps=0,
    dropout=0.0,
    optimiser=OptimiserConfig(learning_rate=0.01, weight_decay=0.01, beta2=0.999),
)


def task_file(folder: Path, rows: list[dict[str, object]], **settings: object) -> Path:
    """A task of one file, a fifth of whose rows are the test."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", [row for n, row in enumerate(rows) if n % 5])
    write_jsonl(folder / "test.jsonl", rows[::5])
    given = {"texts": ["text"], **settings}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    lines += ["[data]", 'train = "train.jsonl"', 'test = ["test.jsonl"]']
    path = folder / "tone.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer.train([*TEXTS, *(str(row["text"]) for row in ROWS)], 320)
    decoder = Decoder(ModelConfig(2, 32, 2, 48, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(3))
    save_model(folder / "model", decoder, tokenizer, {})
    return folder


def stage_folder(path: Path) -> StageFolder:
    machine = MachineConfig(precision="fp32", compile="off", threads=1, checkpoint_seconds=1e9)
    return StageFolder(path, 5, machine, QuietProgress())


@pytest.fixture(scope="module")
def made(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float], Path]:
    folder = tmp_path_factory.mktemp("made")
    task = task_file(folder, ROWS)
    out = stage_folder(folder / "finetune")
    return out, run(replace(CONFIG, task=str(task)), {"base": base}, out), task


def test_it_learns_and_is_measured_beside_rules(
    made: tuple[StageFolder, dict[str, float], Path],
) -> None:
    out, metrics, _ = made
    assert metrics["train_examples"] + metrics["validation_examples"] == 51
    assert metrics["test_examples"] == 13
    assert metrics["test_accuracy"] > 0.9
    assert 0.4 < metrics["majority_accuracy"] < 0.6
    assert metrics["test_accuracy_low"] <= metrics["test_accuracy"] <= 1.0
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert all("lm_loss" in row for row in rows)
    said = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(said) == 13
    right = sum(row["right"] == row["label"] for row in said) / 13
    assert right == metrics["test_accuracy"]


def test_the_model_is_saved_with_its_labels_and_without_dropout(
    made: tuple[StageFolder, dict[str, float], Path],
) -> None:
    model = load_classifier(made[0] / "model")
    assert model.config.labels == ("no", "yes")
    assert model.config.task == "tone"
    assert model.config.model.dropout == 0.0
    assert not model.training


@pytest.mark.parametrize(
    ("own", "set_to", "taken"), [(0.0, -1, 0.0), (0.2, -1, 0.2), (0.2, 0, 0.0)]
)
def test_dropout_is_what_the_base_was_pretrained_with(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: float,
    set_to: float,
    taken: float,
) -> None:
    decoder = load_decoder(base / "model")
    config = replace(decoder.config, dropout=own)
    given = Decoder(config)
    given.load_state_dict(decoder.state_dict())
    save_model(tmp_path / "base/model", given, load_tokenizer(base / "model"), {})
    seen: list[float] = []
    monkeypatch.setattr(Decoder, "set_dropout", lambda self, p: seen.append(p))
    task = str(task_file(tmp_path, ROWS))
    run(
        replace(CONFIG, task=task, dropout=set_to, epochs=1),
        {"base": tmp_path / "base"},
        stage_folder(tmp_path / "out"),
    )
    assert seen == [taken, 0.0]


def test_control_tokens_begin_as_a_line_end(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base / "model")
    config = replace(CONFIG, task=str(task_file(tmp_path, ROWS)))
    located = config.located()
    made = [
        make_classifier(
            replace(config, pretrained=pretrained),
            located.task,
            read_examples(located),
            base / "model",
            tokenizer,
            seed=1,
        )
        for pretrained in (True, False)
    ]
    (line_end,) = tokenizer.encode("\n")
    assert line_end != tokenizer.end_of_text
    table = made[0].decoder.token_embedding.weight
    assert torch.equal(made[0].controls.weight[0], table[tokenizer.end_of_text])
    assert torch.equal(made[0].controls.weight[1], table[line_end])
    assert torch.equal(made[0].controls.weight[2], table[line_end])
    assert not torch.equal(
        made[1].controls.weight[2], made[1].decoder.token_embedding.weight[line_end]
    )


def test_control_tokens_of_a_vocabulary_without_line_ends(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, tokenizer = load_decoder(base / "model"), load_tokenizer(base / "model")
    end = tokenizer.end_of_text
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [])
    assert alike_tokens(tokenizer, body) == (end, end, end)
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [7, 8])
    assert alike_tokens(tokenizer, body) == (end, 8, 8)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_run_ends_with_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config = replace(CONFIG, task=str(task_file(tmp_path, ROWS)), adapter=AdapterConfig(rank=rank))
    whole, cut = stage_folder(tmp_path / "whole"), stage_folder(tmp_path / "cut")
    config = replace(config, epochs=2, dropout=0.1)
    expected = run(config, {"base": base}, whole)
    asked = iter([None] * 7 + [2])
    monkeypatch.setattr(loop, "stop_requested", lambda: next(asked, None))
    with pytest.raises(Interrupted):
        run(config, {"base": base}, cut)
    monkeypatch.setattr(loop, "stop_requested", lambda: None)
    assert run(config, {"base": base}, cut) == expected
    assert load_classifier(cut / "model").config.labels == ("no", "yes")
    file = "adapter.safetensors" if rank else "model.safetensors"
    assert (cut / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"label": "yes"}, {}, "every example has|one label only"),
        ({"label": "maybe"}, {"labels": ["no", "yes"]}, "label 'maybe' is none of no, yes"),
        ({"text": " "}, {}, "column 'text' is empty in 51 of 51 rows"),
        ({"label": float("nan")}, {"numbers": True}, "no finite number"),
        ({}, {"label": "tone"}, "no column 'tone'; there is text, label"),
        ({}, {"form": "entailment"}, "texts"),
    ],
)
def test_bad_input_is_refused_in_one_message(
    base: Path,
    tmp_path: Path,
    change: dict[str, object],
    settings: dict[str, object],
    said: str,
) -> None:
    rows = [{**row, **change} for row in ROWS]
    task, out = task_file(tmp_path, rows, **settings), stage_folder(tmp_path / "out")
    with pytest.raises(UserError, match=said):
        run(replace(CONFIG, task=str(task)), {"base": base}, out)


@pytest.mark.parametrize(
    ("rows", "share", "said"),
    [
        (ROWS, 0.0, "nothing to measure on: none of 64 examples is held out"),
        (ROWS[:1] + ROWS[-3:], 0.1, "nothing to measure on: none of 4 examples is held out"),
        (ROWS[:5] + ROWS[-5:], 0.99, "nothing to learn from: 10 of 10 examples are held out"),
    ],
)
def test_examples_that_are_missing_are_told_before_training(
    base: Path, tmp_path: Path, rows: list[dict[str, object]], share: float, said: str
) -> None:
    path = task_file(tmp_path, rows)
    write_jsonl(tmp_path / "train.jsonl", rows)
    path.write_text(path.read_text().replace('test = ["test.jsonl"]', ""))
    config = replace(CONFIG, task=str(path), validation_share=share)
    with pytest.raises(UserError, match=said):
        run(config, {"base": base}, stage_folder(tmp_path / "out"))


def test_one_label_on_the_test_examples_is_no_failure(
    base: Path, tmp_path: Path, made: tuple[StageFolder, dict[str, float], Path]
) -> None:
    model = load_classifier(made[0] / "model")
    task = locate_task(str(made[2]), []).task
    same = [EncodedExample([[1]], 1, 0.0, False)] * 3
    right = measure_predictions(task, model, same, [torch.tensor([0.0, 1.0])] * 3)
    assert (right.value, right.constant) == (1.0, False)
    mixed = [*same, EncodedExample([[1]], 0, 0.0, False)]
    assert measure_predictions(task, model, mixed, [torch.tensor([0.0, 1.0])] * 4).constant


def test_similarity_as_a_number_is_learnt(base: Path, tmp_path: Path) -> None:
    """As STS-B: both orders added, squared error, Pearson's correlation."""
    pairs = [(one, other) for one in THINGS for other in THINGS]
    rows = [
        {"a": f"the {one}", "b": f"the {other}", "score": 5.0 * (one == other)}
        for one, other in pairs
    ]
    settings = {"form": "similarity", "texts": ["a", "b"], "label": "score", "numbers": True}
    task, out = task_file(tmp_path, rows, **settings), stage_folder(tmp_path / "out")
    metrics = run(replace(CONFIG, task=str(task), epochs=2), {"base": base}, out)
    assert -1.0 <= metrics["test_pearson"] <= 1.0
    assert {"test_spearman", "bag_of_words_pearson"} <= set(metrics)
    assert "majority_pearson" not in metrics
    model = load_classifier(out / "model")
    assert 0.0 < model.config.mean < 2.0
    assert model.config.predicts_numbers


def test_a_choice_is_learnt(base: Path, tmp_path: Path) -> None:
    rows = [
        {"q": f"the {thing} is", "c": [BAD[n % 4], GOOD[n % 3]][:: 1 - 2 * (n % 2)], "gold": n % 2}
        for n, thing in enumerate(THINGS * 6)
    ]
    for row in rows:
        row["gold"] = [each in GOOD for each in row["c"]].index(True)  # type: ignore[union-attr]
    settings = {"form": "multiple_choice", "texts": ["q"], "answers": ["c"], "label": "gold"}
    task, out = task_file(tmp_path, rows, **settings), stage_folder(tmp_path / "out")
    metrics = run(replace(CONFIG, task=str(task), epochs=10), {"base": base}, out)
    assert metrics["test_accuracy"] > 0.9
    named = {"labels": ["A", "B"], "positive": "B", "measures": ["f1"]}
    lettered = [{**row, "gold": "AB"[row["gold"]]} for row in rows]  # type: ignore[call-overload]
    task = task_file(tmp_path / "named", lettered, **settings, **named)
    short = replace(CONFIG, task=str(task), epochs=1)
    assert "test_f1" in run(short, {"base": base}, stage_folder(tmp_path / "named_out"))
    said = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])
    assert said["right"] in said["answers"]


def test_few_examples_have_all_labels_and_weigh_alike(base: Path, tmp_path: Path) -> None:
    rare = [row for row in ROWS if row["label"] == "yes"] + [ROWS[-1], ROWS[-2], ROWS[-3]]
    task = task_file(tmp_path, rare)
    settings = {"examples": 4, "test_examples": 5, "validation_examples": 3}
    config = replace(CONFIG, task=str(task), epochs=1, class_weights="balanced", **settings)  # type: ignore[arg-type]
    out = stage_folder(tmp_path / "out")
    metrics = run(config, {"base": base}, out)
    assert metrics["train_examples"] == 4
    assert metrics["test_examples"] == 5
    assert metrics["validation_examples"] == 3
    random = run(replace(config, pretrained=False), {"base": base}, stage_folder(tmp_path / "new"))
    assert random["train_examples"] == 4


def test_long_texts_are_counted_and_cut(base: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']}, {row['text']}"} for row in ROWS]
    task = task_file(tmp_path, rows)
    out = stage_folder(tmp_path / "out")
    metrics = run(replace(CONFIG, task=str(task), epochs=1, max_length=8), {"base": base}, out)
    assert metrics["train_cut"] > 0 < metrics["test_cut"]
    assert isinstance(out.progress, QuietProgress)
    assert any("are longer than 8 tokens" in text for text in out.progress.said)


def test_one_answer_to_everything_is_told_with_what_to_try(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{**row, "text": "the house is warm"} for row in ROWS]
    out = replace(stage_folder(tmp_path / "finetune"), progress=LineProgress())
    metrics = run(
        replace(CONFIG, task=str(task_file(tmp_path, rows)), epochs=2), {"base": base}, out
    )
    said = capsys.readouterr().err
    assert metrics["test_accuracy"] == pytest.approx(0.5, abs=0.2)
    assert said.count("every held-out example gets the same answer after") == 1
    assert said.count("it has learnt nothing") == 1
    assert said.count("finetune.warmup_fraction=0.06") == 2


def test_settings_are_checked() -> None:
    assert [each.key for each in problems_in(FinetuneConfig(task=""))] == ["task"]


def test_the_share_of_padding_counts_every_sequence() -> None:
    one = EncodedExample([[1] * 4], 0, 0.0, False)
    both_orders = EncodedExample([[1] * 10, [2] * 10], 0, 0.0, False)
    assert padding_share([one, both_orders], [[0, 1]]) == pytest.approx(6 / 30)
    assert padding_share([one, both_orders], [[0], [1], [0]]) == 0.0
