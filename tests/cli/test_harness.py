"""lmsmith eval --harness lm-eval, from the command line to the folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

TASK = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
COMMON = ["--harness", "lm-eval", "--precision", "fp32", "--threads", "1", "--json"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """A model, and a folder with a task of the user's own."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train(["the dog ran to the river and sat by the blue sea"] * 4, 300)
    decoder = Decoder(ModelConfig(2, 32, 2, 64, tokenizer.vocabulary_size))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    save_model(tmp_path / "one", decoder, tokenizer, {})
    rows = [
        {"query": f"the dog ran {n}", "choices": ["to the sea", "river"], "gold": n % 2}
        for n in range(30)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "tasks").mkdir()
    text = TASK.format(file=tmp_path / "rows.json", cache=tmp_path / "cache")
    (tmp_path / "tasks/own_choice.yaml").write_text(text)
    lost = text.replace("own_choice", "lost").replace("path: json", "path: nobody/nothing")
    (tmp_path / "tasks/lost.yaml").write_text(lost)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["eval", "one", *COMMON, *words]) == 2
    return capsys.readouterr().err


def test_a_task_of_ones_own_becomes_a_table_and_items(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [harness])")
    from lmsmith.evaluation.methods.likelihood import LikelihoodReader

    words = ["eval", "one", *COMMON, "--tasks", "own_choice", "--include-path", "tasks"]
    words += ["--limit", "8", "--shots", "0,2", "--seed", "3"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found: dict[str, Any] = json.loads(shown.out)
    place = here / "evals/one/lm-eval"
    assert json.loads((place / "results.json").read_text()) == found
    assert [(row["shots"], row["items"]) for row in found["results"]] == [(0, 8), (2, 8)]
    for row in found["results"]:
        items = [json.loads(line) for line in Path(row["log"]).read_text().splitlines()]
        assert [item["doc_id"] for item in items] == list(range(8))
        accuracy = row["measures"][0]
        assert (accuracy["measure"], accuracy["higher_is_better"]) == ("acc", True)
        assert accuracy["value"] == pytest.approx(sum(item["acc"] for item in items) / 8)
        assert accuracy["stderr"] >= 0
        shots = items[0]["arguments"][0][0].count("the dog ran")
        assert shots == row["shots"] + 1

    # Nothing is asked again.
    monkeypatch.setattr(LikelihoodReader, "read", None)
    assert cli.main(words[: words.index("--json")] + words[words.index("--json") + 1 :]) == 0
    assert "own_choice" in capsys.readouterr().out


def test_mistakes_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [harness])")
    import lm_eval.tasks

    own = ["--include-path", "tasks"]
    message = refused(capsys, "--tasks", "lost", *own)
    assert "lost" in message
    assert "hub was not asked" in message
    assert "no such folder" in refused(capsys, "--tasks", "own_choice", "--include-path", "none")
    assert "a number" in refused(capsys, "--tasks", "own_choice", *own, "--shots", "fit")
    assert "--suite" in refused(capsys, "--tasks", "own_choice", *own, "--suite", "gpt2")
    assert "add --harness" in _own_harness(capsys, *own)

    # lm-eval's own tasks are many thousand files to read.
    manager = lm_eval.tasks.TaskManager

    def few(include_path: Any = None, include_defaults: bool = True) -> Any:
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    assert "near it are: own_choice" in refused(capsys, "--tasks", "own_choise", *own)


def _own_harness(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["eval", "one", "--tasks", "own_choice", *words]) == 2
    return capsys.readouterr().err


def test_without_lm_eval_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "lmsmith[harness]" in refused(capsys, "--tasks", "arc_easy")
