"""Exports replace nothing but exports, and say what a format has no place for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from lmsmith.catalogue.export import default_folder, export, padded_vocabulary
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder


def test_a_hugging_face_folder_is_whole(run: Path, tmp_path: Path) -> None:
    result = export(read_model(run), tmp_path / "out", "hf", "bf16")
    out = tmp_path / "out"
    assert result.as_dict() == {
        "format": "hf",
        "type": "bf16",
        "path": str(out),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
    }
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "card.json"}
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["dtype"] == "bfloat16"
    assert isinstance(config["eos_token_id"], int)
    assert read_model(out).decoder.config.parameters == read_model(run).decoder.config.parameters


def test_nothing_but_an_export_is_replaced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(run)
    out = tmp_path / "out"
    out.mkdir()
    export(model, out, "hf")
    export(model, out, "hf")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty, and not an earlier export"):
        export(model, mine, "hf")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        export(model, mine / "thesis.txt", "hf")
    with pytest.raises(UserError, match="not an earlier export"):
        export(model, run, "hf")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(UserError, match="is the working folder"):
        export(model, Path(), "hf")


def test_a_gguf_file_lies_beside_others(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = read_model(run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for kind in ("f32", "f16", "bf16", "q8_0"):
        export(model, tmp_path / "out", "gguf", kind)
    export(model, tmp_path / "named.gguf", "gguf")
    names = {f"small-{kind}.gguf" for kind in ("f32", "f16", "bf16", "q8_0")} | {"thesis.txt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    sizes = [
        (tmp_path / "out" / f"small-{kind}.gguf").stat().st_size for kind in ("f32", "f16", "q8_0")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_default_folders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(run)
    assert default_folder(model, "hf") == run / "export" / "hf"
    named = replace(model, source=Source("gguf", Path("/x/y.gguf"), "smollm2-135m"))
    assert default_folder(named, "gguf") == Path("smollm2-135m-gguf")


def test_wrong_words_are_named(run: Path, tmp_path: Path) -> None:
    model = read_model(run)
    with pytest.raises(UserError, match=r"--to onnx: not a format\n.*hf, gguf"):
        export(model, tmp_path / "x", "onnx")
    with pytest.raises(UserError, match=r"--type q8_0: not a type of hf\n.*f32, f16, bf16"):
        export(model, tmp_path / "x", "hf", "q8_0")
    with pytest.raises(UserError, match="--type q2: not a type of gguf"):
        export(model, tmp_path / "x", "gguf", "q2")


def test_all_that_a_gguf_file_cannot_hold_is_named(run: Path, tmp_path: Path) -> None:
    model = read_model(run)
    odd = ModelConfig(
        2,
        64,
        4,
        64,
        model.tokenizer.vocabulary_size,
        norm_position="post",
        activation="relu",
        kv_heads=2,
        attention_pattern=("dense", "banded"),
        window=8,
    )
    with pytest.raises(UserError) as caught:
        export(ReadModel(Decoder(odd), model.tokenizer, model.source, {}), tmp_path / "x", "gguf")
    for key in ("norm_position", "activation", "kv_heads", "attention_pattern"):
        assert key in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_vocabulary_is_filled_up_to_the_embedding() -> None:
    padded = padded_vocabulary(
        {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]}, 3
    )
    assert padded["tokenizer.ggml.tokens"] == ["a", "[unused1]", "[unused2]"]
    assert padded["tokenizer.ggml.token_type"] == [1, 5, 5]
