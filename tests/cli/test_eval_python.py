"""Tasks in Python from the command line: the guide's examples, resumed, and their errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli
from lmsmith.evaluation import run
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

GUIDE = Path(__file__).parents[2] / "docs/evaluation/python-tasks.md"
COMMON = ["--precision", "fp32", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """A model, and the guide's files as they are printed there."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tokenizer = Tokenizer.train(["Bits: 0 1 1 0\nThe number of ones is even, odd"] * 4, 300)
    decoder = Decoder(ModelConfig(1, 32, 2, 256, tokenizer.vocabulary_size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, 0.3, generator=generator)
    save_model(tmp_path / "model", decoder, tokenizer, {})
    files = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    assert [name for name, _ in files] == ["parity.py", "sums.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    return tmp_path


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert cli.main(["eval", "model", *words, *COMMON, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    found: list[dict[str, Any]] = json.loads(out.out)["results"]
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_exact_prompt_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "show", "parity.py", "--shots", "2"]) == 0
    shown = capsys.readouterr().out
    assert "parity: Whether the number of ones is even or odd. (parity.py)" in shown
    prompt = shown.split("2 shots drawn ---\n")[1].split("--- and what")[0]
    parts = prompt.rstrip("\n").split("\n\n")
    assert len(parts) == 3
    for part, ending in zip(parts, (" (even|odd)", " (even|odd)", ""), strict=True):
        match = re.fullmatch(rf"Bits:((?: [01]){{6}})\nThe number of ones is{ending}", part)
        assert match is not None
        if ending:
            assert match[2] == ("even", "odd")[match[1].count("1") % 2]
    assert cli.main(["tasks", "show", "parity:Parity", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 40
    assert "no TOML file" in refused(capsys, "tasks", "show", "parity.py", "--toml")


def test_answers_are_kept_until_the_class_is_another(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    scored = run.scored

    def watched(task: Any, item: Any, row: dict[str, Any]) -> dict[str, Any]:
        asked.append(item.id)
        return scored(task, item, row)

    monkeypatch.setattr(run, "scored", watched)
    words = ("--tasks", "parity.py", "--shots", "0,2", "--limit")
    first = evaluate(capsys, *words, "5")
    assert [(each["task"], each["shots"], each["items"]) for each in first] == [
        ("parity", "0", 5),
        ("parity", "2", 5),
    ]
    assert len(asked) == 10
    evaluate(capsys, *words, "7")
    assert len(asked) == 14
    page = (here / "evals/model/report.html").read_text()
    assert "The number of ones is" in page
    file = here / "parity.py"
    file.write_text(file.read_text() + "# another file\n")
    evaluate(capsys, *words, "7")
    assert len(asked) == 28


def test_a_measure_of_its_own_is_the_headline(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(capsys, "--tasks", "sums.py:Sums")[0]
    assert found["measure"] == "nearness"
    assert set(found["measures"]) == {"nearness", "exact_match", "f1"}
    rows = [json.loads(line) for line in Path(found["log"]).read_text().splitlines()]
    assert len(rows) == 11
    assert all(0 <= row["metrics"]["nearness"] <= 1 for row in rows)
    (here / "half.py").write_text(
        "from sums import Sums\nclass Half(Sums):\n"
        "    def measure(self, row, answer):\n        return row['first'] / 22\n"
    )
    half = evaluate(capsys, "--tasks", "half.py")[0]
    assert half["measures"]["nearness"]["value"] == pytest.approx(6 / 22)
    (here / "wild.py").write_text(
        "from sums import Sums\nclass Wild(Sums):\n"
        "    def measure(self, row, answer):\n        return 3\n"
    )
    said = refused(capsys, "eval", "model", "--tasks", "wild.py", *COMMON, "--quiet")
    assert "measure(row, answer)" in said
    assert "gave 3" in said


def test_a_failure_is_one_message_with_file_and_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "parity.py"
    lines = file.read_text().replace('row["bits"].count', 'row["bit"].count')
    file.write_text(lines)
    line = 1 + next(n for n, text in enumerate(lines.splitlines()) if 'row["bit"]' in text)
    said = refused(capsys, "eval", "model", "--tasks", "parity.py", *COMMON, "--quiet")
    expected = f"parity.py, line {line}, in gold(row), items(), row 1: KeyError: 'bit'"
    assert expected in said
    assert expected in GUIDE.read_text("utf-8")


def test_a_task_file_cannot_have_code_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "trap.py").write_text("open('ran', 'w').close()\nclass A:\n    kind = 'rated'\n")
    (here / "rows.jsonl").write_text('{"q": "a"}\n')
    (here / "mean.toml").write_text(
        'kind = "rated"\n[data]\nfile = "rows.jsonl"\n[prompt]\ncontext = "{{ q }}"\n'
        '[rating]\nby = "toxicity"\nclassifier = "trap.py"\nlabel = "x"\n'
    )
    said = refused(capsys, "eval", "model", "--tasks", "mean.toml", *COMMON, "--quiet")
    assert "run only where --tasks names it" in said
    assert not (here / "ran").exists()
