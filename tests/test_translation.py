"""`lmsmith.translate`, ``lmsmith translate`` and ``lmsmith export`` of a translator."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import lmsmith
from lmsmith.catalogue.resolve import resolve
from lmsmith.catalogue.translators import is_translator, read_translator
from lmsmith.cli import main
from lmsmith.core.errors import UserError
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOKENIZER = Tokenizer.train(["a red dog runs", "ein roter Hund läuft"] * 3, 280)
SHAPE = ModelConfig(
    1, 16, 2, 24, TOKENIZER.vocabulary_size, norm_position="post", positions="sinusoidal"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a translator."""
    folder = tmp_path_factory.mktemp("runs") / "de"
    end = TOKENIZER.end_of_text
    model = EncoderDecoder(EncoderDecoderConfig(SHAPE, 2, end, end))
    model.initialise(torch.Generator().manual_seed(1))
    save_model(folder / "translate" / "model", model, TOKENIZER, {"stage": "translate"})
    return folder


def test_python_and_the_command_line_agree(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lmsmith.translate(str(run), ["a red dog", "runs"], beam=2, attention=True)
    table = found.as_dict()
    assert [row["input"] for row in table["translations"]] == ["a red dog", "runs"]
    (tmp_path / "in.txt").write_text("a red dog\nruns\n")
    words = ["translate", str(run), "--input", str(tmp_path / "in.txt"), "--beam", "2"]
    assert main([*words, "--attention", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for ours, theirs in zip(printed["translations"], table["translations"], strict=True):
        attended, expected = ours.pop("attention"), theirs.pop("attention")
        assert attended["weights"] == [pytest.approx(row) for row in expected["weights"]]
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-4)
    assert printed == table
    assert main([*words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["translate", str(run), "a red dog", "--beam", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["beam"] == 1


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "gpt", Decoder(ModelConfig(1, 16, 2, 8, 280)), TOKENIZER, {})
    for words, said in (
        ([str(tmp_path / "gpt"), "a"], "a language model"),
        ([str(run), "a", "--beam", "0"], "width"),
        ([str(run), "a dog " * 20], "the model reads at most 24"),
        ([str(run), "a", "--input", "b"], "not both"),
    ):
        assert main(["translate", *words]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="is a translator"):
        lmsmith.load(run)


def test_export_and_back(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    lmsmith.export(str(run), tmp_path / "hf")
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "hf").eval()
    ours = read_translator(run)
    again = read_translator(tmp_path / "hf")
    source, target = torch.tensor([[9, 10, 11, 0]]), torch.tensor([[0, 12, 13]])
    with torch.no_grad():
        expected = ours.model.logits(ours.model(source, target))
        found = theirs(source, decoder_input_ids=target).logits
        back = again.model.logits(again.model(source, target))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-5)
    text = "a red dog"
    assert again.tokenizer.encode(text) == ours.tokenizer.encode(text)
    with pytest.raises(UserError, match=r"llama\.cpp has no model of this shape"):
        lmsmith.export(str(run), tmp_path / "gguf", to="gguf")


def test_its_shape_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["layers"], shown["decoder_layers"]) == (1, 2)
    model = read_translator(run).model
    assert shown["parameters"] == sum(each.numel() for each in model.parameters())


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    assert is_translator(resolve(tmp_path))
    with pytest.raises(UserError, match="scale_embedding"):
        read_translator(tmp_path)
