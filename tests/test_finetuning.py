"""``finetune``, ``tasks run`` and ``study finetune`` as a user types them, on tiny data."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lmsmith
from lmsmith import finetuning
from lmsmith.cli import main
from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

THINGS = ["house", "river", "dog", "cat", "sky", "sea", "mat", "sister"]
WORDS = {"good": 1, "lovely": 1, "bad": 0, "poor": 0}
ROWS = [(f"the {thing} is {word}", label) for word, label in WORDS.items() for thing in THINGS]
FAST = ("--set", "machine.threads=1", "--set", "machine.precision=fp32", "--set", "min_steps=0")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and the files of the task sst2 in small."""
    folder = tmp_path_factory.mktemp("here")
    tokenizer = Tokenizer.train([text for text, _ in ROWS] * 2, 300)
    decoder = Decoder(ModelConfig(1, 16, 2, 64, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(3))
    save_model(folder / "base", decoder, tokenizer, {})
    (folder / "glue").mkdir()
    for name, rows in {"train": ROWS, "dev": ROWS[::3], "test": ROWS[::2]}.items():
        text = "".join(f"{words}\t{label}\n" for words, label in rows)
        (folder / f"glue/sst2.{name}.tsv").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    arguments = [str(here / "base"), "sst2", "--data", str(here), "--out", str(here / "run")]
    assert main(["finetune", *arguments, *FAST, "--set", "epochs=2", "--quiet"]) == 0
    return here / "run"


def test_the_command_prints_figures_and_makes_a_report(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(here / "base"), "sst2", "--data", str(here), "--out", str(run)]
    assert main(["finetune", *arguments, *FAST, "--set", "epochs=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"]["finetune"]["action"] == "skip"
    assert found["stages"]["finetune"]["metrics"]["test_examples"] == 16
    main(["finetune", *arguments, *FAST, "--set", "epochs=2", "--quiet"])
    said = capsys.readouterr().out
    assert "16 test examples" in said
    assert "the commonest label" in said
    assert f"use it: lmsmith tasks run sst2 {run} < texts.jsonl" in said
    page = (run / "report.html").read_text()
    assert "What is taken for what" in page
    assert 'id="figure-finetune-training"' in page


def test_its_model_answers_texts(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'the dog is good\n{"input": "the sea is poor"}\n\n{"text": "the mat is bad"}\n'
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert main(["tasks", "run", "sst2", str(run), "--threads", "1"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [set(row["probabilities"]) for row in rows] == [{"0", "1"}] * 3
    assert rows[2]["input"] == {"text": "the mat is bad"}
    assert "blank lines" in captured.err
    assert main(["tasks", "run", "tone", str(run)]) == 2
    assert "is fine-tuned for sst2, not tone" in capsys.readouterr().err


def test_an_unknown_task_is_one_message(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", str(here / "base"), "sst3"]) == 2
    assert "did you mean sst2?" in capsys.readouterr().err


def test_a_study_draws_fine_tuning_and_prompts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "finetune", str(here / "base"), "--examples", "8,all", "--shots", "0,2"]
    command += ["--data", str(here), "--out", str(here / "study"), "--limit", "10", "--quiet"]
    command += ["--threads", "1", "--set", "epochs=1", "--set", "min_steps=0", "--ablations"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for name in ("sst2/very", "sst2/pet_1", "without pretraining", "the commonest label"):
        assert name in said
    record = json.loads((here / "study/results.json").read_text())
    points = record["tasks"]["sst2"]
    tuned = [each for each in points if each["name"] == "fine-tuned"]
    assert [each["examples"] for each in tuned] == [8, 32]
    few = [each for each in points if each["name"] == "sst2/very" and each["examples"] == 2]
    assert len(few) == 1
    page = (here / "study/report.html").read_text()
    assert "<svg" in page
    assert "--examples 8,all --shots 0,2 --limit 10 --ablations --threads 1 --set=epochs=1" in page
    kept = (here / "study/sst2/points.jsonl").read_bytes()
    again = lmsmith.study_finetune(
        str(here / "base"),
        examples=["8", "all"],
        shots=[0, 2],
        data=here,
        out=here / "study",
        limit=10,
        threads=1,
        set=["epochs=1", "min_steps=0"],
        ablations=True,
        quiet=True,
    )
    assert [vars(each) for each in again.tasks["sst2"]] == points
    assert (here / "study/sst2/points.jsonl").read_bytes() == kept
    assert not list((here / "study/sst2/work").iterdir())


def test_a_study_measures_again_what_its_data_changed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(model: str, task: str, **given: Any) -> SimpleNamespace:
        trained.append(Path(task).read_text())
        given["out"].mkdir(parents=True)
        metrics = {"train_examples": 8.0, "test_examples": 1.0}
        for name in ("test", "majority"):
            metrics |= dict.fromkeys((f"{name}_accuracy", f"{name}_accuracy_low"), 0.5)
            metrics[f"{name}_accuracy_high"] = 0.5
        return SimpleNamespace(record={"stages": {"finetune": {"metrics": metrics}}})

    monkeypatch.setattr(finetuning, "finetune", train)
    task = tmp_path / "tone.toml"
    table = '[data]\ntrain = "a.tsv"\ntest = ["a.tsv"]\n'
    task.write_text(f'texts = ["text"]\n{table}')
    given = {"tasks": [str(task)], "examples": ["all"], "seeds": 1, "threads": 1, "quiet": True}

    def study() -> int:
        lmsmith.study_finetune(str(here / "base"), out=tmp_path / "out", **given)
        return len(trained)

    (tmp_path / "a.tsv").write_text("text\tlabel\na\tyes\nb\tno\n")
    assert [study(), study()] == [1, 1]
    (tmp_path / "a.tsv").write_text("text\tlabel\na\tyes\nc\tno\n")
    assert study() == 2
    task.write_text(f'texts = ["text"]\nmeasures = ["accuracy"]\n{table}')
    assert [study(), study()] == [3, 3]
    (tmp_path / "other").mkdir()
    for name in ("tone.toml", "a.tsv"):
        (tmp_path / "other" / name).write_text((tmp_path / name).read_text())
    given["tasks"] = [str(task), str(tmp_path / "other/tone.toml")]
    with pytest.raises(UserError, match="two of the name tone"):
        study()
