"""A registry of the test's own, and small models in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import read_model
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a pretrained model of fresh weights."""
    folder = tmp_path / "runs" / "small"
    decoder = Decoder(ModelConfig(2, 64, 4, 64, TOKENIZER.vocabulary_size))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    save_model(folder / "pretrain" / "model", decoder, TOKENIZER, {"stage": "pretrain"})
    (folder / "recipe.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def hugging_face(run: Path, tmp_path: Path) -> Path:
    export(read_model(run), tmp_path / "theirs", "hf")
    return tmp_path / "theirs"


@pytest.fixture
def gguf_file(run: Path, tmp_path: Path) -> Path:
    pytest.importorskip("gguf")
    return export(read_model(run), tmp_path, "gguf", "f32").path
