"""Model folders come back bit for bit, and a bad one is one clear message."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.models.adapters import AdapterConfig, adapt, adapted_layers, has_adapters
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import (
    load_decoder,
    load_model,
    load_scalar_model,
    load_tokenizer,
    read_model_config,
    save_model,
)
from lmsmith.models.heads import ScalarModel
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["to be or not to be"], 270)
CONFIG = ModelConfig(2, 16, 2, 12, TOKENIZER.vocabulary_size, dropout=0.1)


def made(kind: str, seed: int = 0) -> Decoder | ScalarModel:
    decoder = Decoder(CONFIG)
    decoder.initialise(torch.Generator().manual_seed(seed))
    if kind == "decoder":
        return decoder
    model = ScalarModel(decoder)
    model.initialise_head(torch.Generator().manual_seed(seed))
    model.shift.fill_(1.25)
    return model


@pytest.mark.parametrize("kind", ["decoder", "scalar"])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = made(kind)
    save_model(tmp_path / "model", made(kind, 1), TOKENIZER, {})
    save_model(tmp_path / "model", model, TOKENIZER, {"stage": "test"})  # replaces the other
    again = load_model(tmp_path / "model")
    assert type(again) is type(model)
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert again.state_dict()[name].device.type == "cpu"
    assert read_model_config(tmp_path / "model") == (kind, CONFIG)
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("not to be")) == "not to be"
    card = json.loads((tmp_path / "model/card.json").read_text(encoding="utf-8"))
    assert card == {"stage": "test"}


def test_a_model_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "a", made("decoder"), TOKENIZER, {})
    save_model(tmp_path / "b", made("scalar"), TOKENIZER, {})
    assert isinstance(load_decoder(tmp_path / "a"), Decoder)
    assert isinstance(load_scalar_model(tmp_path / "b"), ScalarModel)
    with pytest.raises(UserError, match="has no reward head"):
        load_scalar_model(tmp_path / "a")
    with pytest.raises(UserError, match="gives numbers, not text"):
        load_decoder(tmp_path / "b")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UserError, match="not an lmsmith model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "decoder", "model": {"layer": 2}}')
    with pytest.raises(UserError, match="layers"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text", "other shape"])
def test_damaged_weights_are_one_clear_message(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    save_model(folder, made("decoder"), TOKENIZER, {})
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"not a tensor at all, only words")
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model"]["width"] = 32
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


ADAPTER = AdapterConfig(rank=2, alpha=4.0)


def train_adapters(model: Decoder | ScalarModel, seed: int) -> None:
    adapt(model, ADAPTER, torch.float32, seed)
    for _, layer in adapted_layers(model):
        layer.up.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(seed))


def adapter_chain(runs: Path) -> dict[str, Decoder | ScalarModel]:
    """A base, SFT on it, a reward model on SFT, a value model on that: adapters on adapters."""
    models: dict[str, Decoder | ScalarModel] = {"base": made("decoder")}
    save_model(runs / "base/model", models["base"], TOKENIZER, {})
    for seed, (name, base) in enumerate(
        {"sft": "base", "reward": "sft", "value": "reward"}.items()
    ):
        model = load_model(runs / base / "model")
        if name == "reward":
            assert isinstance(model, Decoder)
            model = ScalarModel(model)
            model.shift.fill_(0.5)
        train_adapters(model, seed)
        save_model(runs / name / "model", model, TOKENIZER, {}, ADAPTER, runs / base / "model")
        models[name] = model
    return models


def test_adapters_are_added_to_the_model_they_were_trained_on(tmp_path: Path) -> None:
    models = adapter_chain(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "moved")  # together they may go anywhere
    tokens = torch.randint(0, CONFIG.vocabulary_size, (2, 9))
    for name, model in models.items():
        folder = tmp_path / "moved" / name / "model"
        assert (folder / "adapter.safetensors").exists() == (name != "base")
        again = load_model(folder)
        assert type(again) is type(model)
        assert not has_adapters(again)
        torch.testing.assert_close(again(tokens), model.eval()(tokens), rtol=1e-4, atol=1e-5)


def test_adapters_without_their_model_or_damaged_are_one_message(tmp_path: Path) -> None:
    adapter_chain(tmp_path)
    path = tmp_path / "reward/model/adapter.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter\.safetensors cannot be read"):
        load_model(tmp_path / "reward/model")
    shutil.copy(tmp_path / "sft/model/adapter.safetensors", path)
    with pytest.raises(UserError, match=r"adapter\.safetensors cannot be read"):
        load_model(tmp_path / "reward/model")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no longer at .*base/model") as caught:
        load_model(tmp_path / "sft/model")
    assert "lmsmith export" in (caught.value.fix or "")
    with pytest.raises(ValueError, match="settings and its base"):
        save_model(tmp_path / "x", adapter_chain(tmp_path / "y")["sft"], TOKENIZER, {})


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    config = replace(CONFIG, ffn_width=24, kv_heads=1, qkv_bias=False, ffn_bias=False)
    save_model(tmp_path / "model", Decoder(config), TOKENIZER, {})
    path = tmp_path / "model" / "config.json"
    text = path.read_text()
    for new, old in (
        ("ffn_width", "feed_forward"),
        ("kv_heads", "key_value_heads"),
        ("qkv_bias", "query_key_value_bias"),
        ("ffn_bias", "feed_forward_bias"),
    ):
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    path.write_text(text)
    assert read_model_config(tmp_path / "model") == ("decoder", config)
