"""Vectors of texts: equal to transformers' with mean pooling, whatever else is in the batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsmith.api import export
from lmsmith.catalogue.encoders import (
    Pooling,
    ReadEncoder,
    is_encoder,
    read_encoder,
    read_pooling,
)
from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.resolve import Source, resolve
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.embedding import Embedded, Embedder, EncoderForward
from lmsmith.generation.fill_mask import filled, masked_tokens
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import load_model
from lmsmith.models.interop.bert import write_bert_folder
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.base import BaseConfig
from lmsmith.stages.base import run as run_base
from lmsmith.tokenizers.hugging_face import to_hugging_face
from tiny_encoders import tiny_folder, tiny_masked_lm, tiny_tokenizer

TEXTS = ["the dog", "the cat sat on the mat by the sea", "a house", "sisters", "the dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of an encoder."""
    folder, tokenizer = tmp_path_factory.mktemp("bert"), tiny_tokenizer()
    write_bert_folder(folder, tiny_masked_lm(tokenizer.vocabulary_size).encoder)
    to_hugging_face(tokenizer, folder)
    return folder


@torch.no_grad()
def test_vectors_are_those_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    found = Embedder(read_encoder(folder)).embed(TEXTS)
    np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        found.vectors @ found.vectors.T, expected @ expected.T, rtol=0, atol=1e-5
    )
    assert found.tokens == given["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_position": "pre"},
        {"positions": "rotary", "norm": "rms"},
        {"kv_heads": 1},
        {"activation": "swiglu"},
    ],
)
@torch.no_grad()
def test_rows_without_padding_are_the_encoders(changes: dict[str, object]) -> None:
    shape = replace(tiny_masked_lm(61).encoder.config, **changes)  # type: ignore[arg-type]
    encoder = Encoder(shape).eval()
    for name, parameter in encoder.named_parameters():
        parameter.normal_(float(name.endswith("norm.weight")), 0.3)
    rows = [[2, 7, 3], [2, 9, 11, 12, 3], [2, 8, 3], [2, 3]]
    found = torch.split(EncoderForward(encoder)(rows), [len(row) for row in rows])
    for row, states in zip(rows, found, strict=True):
        expected = encoder(torch.tensor([row]))[0]
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_bf16_has_the_rounding_of_its_products_alone(folder: Path) -> None:
    read = read_encoder(folder)
    exact, rounded = Embedder(read), Embedder(read, torch.bfloat16)
    expected, found = exact.embed(TEXTS).vectors, rounded.embed(TEXTS).vectors
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=5e-3)
    np.testing.assert_allclose(exact.embed(TEXTS).vectors, expected, rtol=0, atol=1e-6)
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(rounded.embed([text]).vectors[0], vector, rtol=0, atol=1e-3)


def test_other_texts_change_nothing(folder: Path) -> None:
    embedder = Embedder(read_encoder(folder))
    together = embedder.embed(TEXTS).vectors
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embedder.embed([text]).vectors[0], vector, rtol=0, atol=1e-6)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(together[0], together[4])


def test_long_texts_lose_their_end_and_are_counted(folder: Path) -> None:
    embedder = Embedder(read_encoder(folder))
    assert embedder.most_tokens == 48
    found = embedder.embed(["the dog", "the cat " * 40])
    assert (found.tokens, found.cut) == ([4, 48], [1])
    kept = embedder.tokens(["the cat " * 40])[0]
    cut = embedder.embed_tokens([[*kept[:47], embedder.frame.sep]])
    np.testing.assert_allclose(found.vectors[1], cut.vectors[0], rtol=0, atol=1e-6)


def test_the_files_say_how_to_pool(folder: Path, tmp_path: Path) -> None:
    read = read_encoder(folder)
    first = Embedder(replace(read, pooling=Pooling(mean=False, most_tokens=4)))
    assert first.most_tokens == 4
    states = read.encoder(torch.tensor(first.tokens(["dog"])))[0, 0].detach().numpy()
    vector = first.embed(["dog"]).vectors[0]
    np.testing.assert_allclose(vector, states / np.linalg.norm(states), rtol=0, atol=1e-5)
    write_bert_folder(tmp_path, read.encoder)
    to_hugging_face(read.tokenizer, tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    (tmp_path / "1_Pooling").mkdir()
    modes = tmp_path / "1_Pooling" / "config.json"
    modes.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert read_encoder(tmp_path).pooling == Pooling(mean=False, most_tokens=9)
    modes.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pooled by pooling_mode_max_tokens"):
        read_encoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        ({"pooling_mode": "cls", "include_prompt": True}, False),
        ({"pooling_mode": "mean"}, True),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, True),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode": ["cls", "mean"]}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_pooling_is_read_as_old_and_new_versions_write_it(
    config: dict[str, object], mean: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if mean is None:
        with pytest.raises(UserError, match="its vectors are pooled by"):
            read_pooling(tmp_path)
    else:
        assert read_pooling(tmp_path) == Pooling(mean=mean)


def test_modules_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    package = "sentence_transformers"
    known = [
        f"{package}.models.Transformer",
        f"{package}.sentence_transformer.modules.pooling.Pooling",
        f"{package}.models.Normalize",
    ]
    modules = tmp_path / "modules.json"
    modules.write_text(json.dumps([{"type": name} for name in known]))
    assert read_pooling(tmp_path) == Pooling()
    known.insert(2, f"{package}.models.Dense")
    modules.write_text(json.dumps([{"type": name} for name in known]))
    with pytest.raises(UserError, match=r"modules.json has a module Dense"):
        read_pooling(tmp_path)
    for damaged in ("[{}]", "[7]"):
        modules.write_text(damaged)
        with pytest.raises(UserError, match=r"modules.json has a module"):
            read_pooling(tmp_path)


def test_encoders_and_writers_are_told_apart(folder: Path, tmp_path: Path) -> None:
    ours = tiny_folder(tmp_path / "model")
    assert is_encoder(resolve(folder))
    assert is_encoder(resolve(ours))
    for path in (folder, ours):
        with pytest.raises(UserError, match="it reads text, and writes none"):
            read_model(path)


def test_parts_are_joined_in_order() -> None:
    one = Embedded(np.eye(2, dtype=np.float32), [3, 4], [1])
    both = Embedded.joined([one, one])
    assert both.vectors.shape == (4, 2)
    assert (both.tokens, both.cut) == ([3, 4, 3, 4], [1, 3])


@torch.no_grad()
def test_masks_are_filled_by_both_sides(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_masked_lm(tokenizer.vocabulary_size)
    tokens = masked_tokens(tokenizer, "the [MASK] sat")
    frame = Embedder(_read(model, tokenizer)).frame
    assert tokens[0] == frame.cls
    assert tokens.count(frame.mask) == 1
    expected = model(torch.tensor([tokens]))[0, tokens.index(frame.mask)].softmax(-1)
    (found,) = filled(model, tokenizer, "the [MASK] sat", 4)
    for each in found.candidates:
        assert each.probability == pytest.approx(float(expected[each.token]), abs=1e-5)
        assert each.token not in tokenizer.control_tokens
    probabilities = [each.probability for each in found.candidates]
    assert probabilities == sorted(probabilities, reverse=True)
    (whole,) = filled(model, tokenizer, "the [MASK] sat", 9999)
    words = set(range(tokenizer.vocabulary_size)) - set(tokenizer.control_tokens)
    assert sorted(each.token for each in whole.candidates) == sorted(words)
    (other,) = filled(model, tokenizer, "the [MASK] mat", 4)
    assert [each.probability for each in other.candidates] != probabilities
    with pytest.raises(UserError, match="no mask"):
        filled(model, tokenizer, "the dog", 4)
    with pytest.raises(UserError, match="and the model reads 48"):
        filled(model, tokenizer, "[MASK]" + " the" * 60, 4)


def test_no_other_control_token_is_written_by_a_text() -> None:
    tokenizer = tiny_tokenizer()
    tokens = masked_tokens(tokenizer, "a [SEP] b [CLS] [PAD] [MASK]")
    frame = masked_tokens(tokenizer, "[MASK]")
    assert tokens.count(frame[0]) == tokens.count(frame[-1]) == 1


def _read(model: object, tokenizer: object) -> ReadEncoder:
    return ReadEncoder(model, tokenizer, Source("hf", Path(), "tiny"), Pooling())  # type: ignore[arg-type]


def test_an_encoder_is_exported_and_is_a_base(tmp_path: Path) -> None:
    ours = tiny_folder(tmp_path / "model")
    exported = export(str(ours), tmp_path / "hf")
    again = read_encoder(exported.path)
    for name, each in read_encoder(ours).model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], each), name
    expected = Embedder(read_encoder(ours)).embed(TEXTS).vectors
    assert np.array_equal(Embedder(again).embed(TEXTS).vectors, expected)
    with pytest.raises(UserError, match="an encoder is exported to hf"):
        export(str(ours), tmp_path / "gguf", to="gguf")
    stage = StageFolder(tmp_path / "base", 1, MachineConfig(), QuietProgress())
    run_base(BaseConfig(model=str(exported.path)), {}, stage)
    assert isinstance(load_model(stage / "model"), Encoder)
