"""lmsmith pull, models, export and generate: for people and as JSON, and with exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli
from lmsmith.catalogue import registry, versions
from lmsmith.catalogue.registry import Record
from lmsmith.catalogue.versions import Version
from lmsmith.core.terminal import visible
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """A folder with a run in it, and an empty registry."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    decoder = Decoder(ModelConfig(2, 64, 4, 64, TOKENIZER.vocabulary_size))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    save_model(tmp_path / "runs/small/pretrain/model", decoder, TOKENIZER, {})
    (tmp_path / "runs/small/recipe.json").write_text("{}", encoding="utf-8")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(list(words)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def register(capsys: pytest.CaptureFixture[str], name: str) -> Record:
    pytest.importorskip("gguf")
    record = Record(name, "gguf", "m.gguf", "somewhere", "ab", 3, registry.now())
    with registry.registering(name) as partial:
        answer(capsys, "export", "runs/small", str(partial / "m.gguf"), "--to", "gguf", "--json")
        registry.write_record(partial, record)
    return record


def test_versions_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    assert answer(capsys, "models", "ls", "--json")["versions"] == []
    for number in (1, 2):
        folder = versions.folder_of("ours") / versions.NEXT
        (folder / "model").mkdir(parents=True)
        made = Version("ours", number, "model", versions.hash_model(folder / "model"), "run", "")
        versions.write_version(folder, made)
        versions.put_in_place(made)
        if number == 1:
            versions.found_lineage(made, "me")
    versions.set_trial("ours", 2)
    (found,) = answer(capsys, "models", "ls", "--json")["versions"]
    assert found == {
        "name": "ours",
        "promoted": "ours@1",
        "on_trial": "ours@2",
        "versions": ["ours@1", "ours@2"],
    }
    assert cli.main(["models", "ls"]) == 0
    assert "ours  versions  ours@1 (promoted), ours@2 (on trial)" in capsys.readouterr().out


def test_a_named_model_is_listed_shown_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = answer(capsys, "models", "ls", "--json")
    assert listed["models"] == []
    assert [each["name"] for each in listed["pull"]] == ["smollm2-135m", "all-minilm-l6-v2"]
    record = register(capsys, "mine")
    listed = answer(capsys, "models", "ls", "--json")
    assert listed["models"] == [record.as_dict()]
    assert cli.main(["models", "ls"]) == 0
    assert "mine  gguf" in capsys.readouterr().out
    shown = answer(capsys, "models", "show", "mine", "--json")
    assert (shown["layers"], shown["width"], shown["context"]) == (2, 64, 64)
    assert shown["sha256"] == "ab"
    assert cli.main(["models", "show", "mine"]) == 0
    assert "parameters " in capsys.readouterr().out
    assert answer(capsys, "models", "rm", "mine", "--json") == {"removed": "mine", "bytes": 3}
    assert cli.main(["models", "rm", "mine"]) == 2
    assert "no model of that name" in capsys.readouterr().err
    assert cli.main(["models", "show", "mine"]) == 2


def test_export_has_a_folder_by_default(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, "export", "runs/small", "--json")
    assert result["path"] == "runs/small/export/hf"
    assert (here / "runs/small/export/hf/model.safetensors").is_file()
    assert cli.main(["export", "runs/small", "elsewhere", "--type", "bf16"]) == 0
    assert "elsewhere: " in capsys.readouterr().out
    assert cli.main(["export", "runs/small", "runs/small"]) == 2
    assert "not an earlier export" in capsys.readouterr().err
    register(capsys, "mine")
    assert answer(capsys, "export", "mine", "--json")["path"] == "mine-hf"


def test_generate_writes_the_same_text_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "runs/small", "hello", "--max-tokens", "8", "--seed", "3"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    whole = answer(capsys, *words, "--json")
    assert visible(whole["text"]).rstrip("\ufffd") == text.rstrip("\ufffd")
    assert whole["seed"] == 3
    assert whole["finish"] in ("stop", "length")
    assert len(whole["tokens"]) <= 8
    for token in whole["tokens"]:
        log_probs = [each["log_probability"] for each in token["alternatives"]]
        assert len(log_probs) == 5
        assert log_probs == sorted(log_probs, reverse=True)
        assert token["log_probability"] <= log_probs[0] + 1e-6
    assert "prompt_log_probabilities" not in whole
    words += ["--json", "--prompt-log-probabilities", "--alternatives", "2"]
    fuller = answer(capsys, *words)
    prompt = fuller["prompt_log_probabilities"]
    assert [each["id"] for each in prompt] == fuller["prompt_tokens"][1:]
    assert all(each["log_probability"] < 0 for each in prompt)
    assert [each["id"] for each in fuller["tokens"]] == [each["id"] for each in whole["tokens"]]
    assert all(len(each["alternatives"]) == 2 for each in [*prompt, *fuller["tokens"]])
    assert cli.main(["generate", "runs/small", "hello", "--top-p", "0"]) == 2
    assert "top_p" in capsys.readouterr().err
    assert cli.main(["generate", "nothing", "hello"]) == 2


def test_pull_of_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", "gpt5"]) == 2
    assert "gpt5: not a model that can be fetched" in capsys.readouterr().err


def test_pull_prints_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    record = register(capsys, "smollm2-135m")  # it is here, so nothing is fetched
    assert answer(capsys, "pull", "smollm2-135m", "--json") == record.as_dict()
    assert cli.main(["pull", "smollm2-135m"]) == 0
    assert "lmsmith chat smollm2-135m" in capsys.readouterr().out
