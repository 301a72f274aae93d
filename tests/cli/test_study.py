"""lmsmith study, from the command line to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli
from lmsmith.evaluation.methods.likelihood import MultipleChoice
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["the dog ran to the river and sat by the blue sea, 1 + 2"] * 4, 300)
COMMON = ["--precision", "fp32", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """Two models of different sizes, and the rows of a classification."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LMSMITH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, width in (("small", 16), ("large", 32)):
        torch.manual_seed(width)
        decoder = Decoder(ModelConfig(1, width, 2, 256, TOKENIZER.vocabulary_size))
        save_model(tmp_path / name, decoder, TOKENIZER, {})
    rows = [
        {"query": f"the dog {n}", "choices": ["the sea", "a <river>"], "gold": n % 2}
        for n in range(24)
    ]
    parts = {"context_options": ["the dog", "the sea"], "continuation": "ran", "gold": 0}
    (tmp_path / "parts.jsonl").write_text(json.dumps(parts) + "\n")
    (tmp_path / "kind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def study(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["study", *words, *COMMON, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    found: dict[str, Any] = json.loads(out.out)
    return found


def test_labels_of_two_models_on_one_page(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("labels", "small", "large", "--tasks", "kind.jsonl", "--shots", "2")
    found = study(capsys, *words)
    assert [row["model"] for row in found["results"]] == ["small", "large"]
    assert len(found["results"][0]["arms"]) == 6
    assert found["results"][0]["chance"] == 0.5
    page = Path(found["report"]).read_text()
    assert "random words as labels" in page
    assert page.count("<svg") == 1
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert json.loads((here / "evals/study-labels/results.json").read_text())["study"] == "labels"
    monkeypatch.setattr(MultipleChoice, "answer", None)  # nothing is asked again
    assert study(capsys, *words) == found


def test_shots_are_drawn_against_number_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--tasks", "arithmetic/2d_plus", "--shots", "0,2", "--limit", "4")
    found = study(capsys, "shots", "small", "large", *words)
    assert [arm["shots"] for arm in found["results"][1]["arms"]] == ["0", "2"]
    page = Path(found["report"]).read_text()
    assert page.count("<svg") == 2
    assert "examples in the context" in page


def test_order_prints_its_spread(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["order", "small", "--tasks", "kind.jsonl", "--shots", "3", "--quiet", *COMMON]
    assert cli.main(["study", *words]) == 0
    shown = capsys.readouterr().out
    assert "order 6" in shown
    assert "by the order of the same examples, standard deviation" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["labels", "--tasks", "kind.jsonl"], "no models"),
        (["labels", "small"], "no tasks"),
        (["labels", "small", "small", "--tasks", "kind.jsonl"], "named twice"),
        (["labels", "small", "--tasks", "kind.jsonl", "--shots", "fit"], "--shots fit"),
        (["labels", "small", "--tasks", "kind.jsonl", "--shots", "24"], "24 shots, but there are"),
        (["shots", "small", "--tasks", "kind.jsonl", "--limit", "0"], "--limit 0"),
        (["labels", "small", "--tasks", "parts.jsonl"], "no labels to be replaced"),
        (["order", "small", "--tasks", "kind.jsonl", "--measure", "f1"], "--measure f1"),
    ],
)
def test_mistakes_are_told_in_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(["study", *words, "--quiet", *COMMON]) == 2
    assert said in capsys.readouterr().err
