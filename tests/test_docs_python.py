"""The examples of docs/python.md run as they stand, on a tiny model in the quickstart's place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.tokenizers import Tokenizer

PAGE = Path(__file__).parents[1] / "docs/python.md"
EXAMPLES = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
TOKENIZER = Tokenizer.train(["the dog ran to the river and sat by the blue sea, 1 + 2"] * 4, 300)


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> None:
    """A run with random weights, in the working folder."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, stage in enumerate(("sft", "ppo", "reward")):
        decoder = Decoder(ModelConfig(2, 64, 2, 256, TOKENIZER.vocabulary_size))
        model = ScalarModel(decoder) if stage == "reward" else decoder
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                mean = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.normal_(mean, 0.2, generator=generator)
        save_model(tmp_path / "runs/quickstart" / stage / "model", model, TOKENIZER, {})


@pytest.mark.usefixtures("quickstart")
@pytest.mark.parametrize(
    "code", [code for _, code in EXAMPLES], ids=[title for title, _ in EXAMPLES]
)
def test_example(code: str) -> None:
    exec(compile(code, PAGE.name, "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5
