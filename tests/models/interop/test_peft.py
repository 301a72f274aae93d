"""PEFT's LoRA folders against PEFT itself, and against the formula where PEFT is not installed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import read_config, read_model
from lmsmith.core.errors import UserError
from lmsmith.models.adapters import AdapterConfig, TrainedState, add_adapters, merged_state
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.interop.peft import from_peft, read_peft_folder, to_peft
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import to_hugging_face
from tiny_models import TEXTS

TOKENIZER = Tokenizer.train(TEXTS, 300)
SIZE = TOKENIZER.vocabulary_size
TOKENS = torch.tensor([[3, 17, 250, 9, 120, 42, 7, 99]])

Pairs = dict[str, tuple[Tensor, Tensor]]


def make_base(family: str, folder: Path) -> Any:
    """A tiny model of transformers with random weights, saved with a tokenizer."""
    torch.manual_seed(4)
    common: dict[str, Any] = {"vocab_size": SIZE, "tie_word_embeddings": False}
    if family == "llama":
        config: Any = transformers.LlamaConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, **common,
        )  # fmt: skip
    elif family == "gpt2":
        config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=32, **common)
    else:
        config = transformers.GPTNeoConfig(
            hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=32,
            attention_types=[[["global"], 2]], intermediate_size=40, **common,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(folder)
    to_hugging_face(TOKENIZER, folder)
    return model


MODULES = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neo": ["q_proj", "k_proj", "out_proj"],
}


def make_adapter(model: Any, family: str, base: Path, folder: Path, **settings: Any) -> Pairs:
    """A LoRA folder with random matrices, as PEFT writes one; its pairs by module."""
    generator = torch.Generator().manual_seed(8)
    rank, pairs = int(settings.get("r", 3)), {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in MODULES[family]:
            outputs, inputs = module.weight.shape
            if family == "gpt2":
                outputs, inputs = inputs, outputs
            pairs[name] = (
                torch.randn(rank, inputs, generator=generator) / 5,
                torch.randn(outputs, rank, generator=generator) / 5,
            )
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 5, "bias": "none",
        "target_modules": MODULES[family], "fan_in_fan_out": family == "gpt2",
        "base_model_name_or_path": str(base), **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(content))
    weights = {}
    for name, (down, up) in pairs.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = down
        weights[f"base_model.model.{name}.lora_B.weight"] = up
    save_file(weights, folder / "adapter_model.safetensors")
    return pairs


def expected_logits(model: Any, family: str, pairs: Pairs, scale: float) -> Tensor:
    """The formula of LoRA on transformers' own weights."""
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            change = scale * up @ down
            weight = model.get_submodule(name).weight
            weight.add_(change.T if family == "gpt2" else change)
        logits: Tensor = model(TOKENS).logits
    return logits


def our_logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(TOKENS))


def peft_logits(model: Any, folder: Path) -> Tensor:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        logits: Tensor = adapted(TOKENS).logits
    return logits


@pytest.mark.parametrize("family", list(MODULES))
@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_is_read_as_a_model(tmp_path: Path, family: str, rslora: bool) -> None:
    model = make_base(family, tmp_path / "base")
    pairs = make_adapter(model, family, tmp_path / "base", tmp_path / "lora", use_rslora=rslora)
    before = model(TOKENS).logits.detach().clone()
    read = read_model(tmp_path / "lora")
    expected = expected_logits(model, family, pairs, 5 / (3**0.5 if rslora else 3))
    torch.testing.assert_close(our_logits(read.decoder), expected, rtol=1e-4, atol=1e-4)
    assert float((expected - before).abs().max()) > 0.1
    assert read.source.format == "peft"
    assert read_config(read.source) == read.decoder.config


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_equal_pefts(tmp_path: Path, family: str) -> None:
    model = make_base(family, tmp_path / "base")
    make_adapter(model, family, tmp_path / "base", tmp_path / "lora")
    ours = our_logits(read_model(tmp_path / "lora").decoder)
    torch.testing.assert_close(ours, peft_logits(model, tmp_path / "lora"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", list(MODULES))
def test_it_goes_there_and_back(tmp_path: Path, family: str) -> None:
    model = make_base(family, tmp_path / "base")
    pairs = make_adapter(model, family, tmp_path / "base", tmp_path / "lora")
    shape = read_model(tmp_path / "base").decoder.config
    config, state = from_peft(shape, read_peft_folder(tmp_path / "lora"))
    assert config.rank == (6 if family != "gpt2" else 3)  # two of q, k, v in one matrix
    settings, weights = to_peft(shape, config, state)
    assert settings["r"] == 3
    assert settings["lora_alpha"] == pytest.approx(5)
    assert set(weights) == {
        f"base_model.model.{name}.lora_{half}.weight" for name in pairs for half in "AB"
    }
    for name, (down, up) in pairs.items():
        found = [weights[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB"]
        assert torch.equal(found[0], down)
        torch.testing.assert_close(found[1], up, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_our_adapters_are_exported(tmp_path: Path, family: str) -> None:
    model = make_base(family, tmp_path / "hf")
    base = read_model(tmp_path / "hf")
    save_model(tmp_path / "run/base/model", base.decoder, TOKENIZER, {})
    adapter = AdapterConfig(rank=4, alpha=6.0)
    add_adapters(base.decoder, adapter)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in TrainedState(base.decoder).state_dict().values():
            value.normal_(0, 0.2, generator=generator)
    ours = tmp_path / "run/sft/model"
    save_model(ours, base.decoder, TOKENIZER, {}, adapter, tmp_path / "run/base/model")
    read = read_model(ours)
    found = export(read, tmp_path / "lora", "peft", base=str(tmp_path / "hf"))
    assert found.format == "peft"
    weights = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert all(value.shape[0 if ".lora_A" in name else 1] == 4 for name, value in weights.items())
    again = read_model(tmp_path / "lora").decoder
    torch.testing.assert_close(our_logits(again), our_logits(read.decoder), rtol=1e-5, atol=1e-5)
    expected = peft_logits(model, tmp_path / "lora")
    torch.testing.assert_close(our_logits(read.decoder), expected, rtol=1e-4, atol=1e-4)


def test_the_base_of_an_export_must_be_the_adapters_own(tmp_path: Path) -> None:
    make_base("llama", tmp_path / "hf")
    make_base("gpt2", tmp_path / "other")
    base = read_model(tmp_path / "hf")
    save_model(tmp_path / "base", base.decoder, TOKENIZER, {})
    adapter = AdapterConfig(rank=1)
    add_adapters(base.decoder, adapter)
    with torch.no_grad():
        for value in TrainedState(base.decoder).state_dict().values():
            value.fill_(0.1)
    save_model(tmp_path / "ours", base.decoder, TOKENIZER, {}, adapter, tmp_path / "base")
    read = read_model(tmp_path / "ours")
    with pytest.raises(UserError, match="not the model that these adapters were made for"):
        export(read, tmp_path / "lora", "peft", base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="adapters stand on a model"):
        export(read, tmp_path / "lora", "peft")
    with pytest.raises(UserError, match="has no adapters"):
        export(read_model(tmp_path / "base"), tmp_path / "lora", "peft", base="x")
    with pytest.raises(UserError, match="whole model"):
        export(read, tmp_path / "lora", "hf", base="x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "reads LORA alone"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases were trained"),
        ({"modules_to_save": ["lm_head"]}, "whole modules were trained"),
        ({"rank_pattern": {"q_proj": 8}}, "ranks of their own"),
        ({"alpha_pattern": {"q_proj": 8}}, "scales of their own"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the weights of the base"),
        ({"task_type": "SEQ_CLS"}, "writes text"),
        ({"lora_alpha": "much"}, "a number above 0"),
        ({"base_model_name_or_path": "nobody/nothing"}, "not on this machine"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    model = make_base("llama", tmp_path / "base")
    make_adapter(model, "llama", tmp_path / "base", tmp_path / "lora", **settings)
    with pytest.raises(UserError) as caught:
        read_model(tmp_path / "lora")
    assert said in str(caught.value)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    model = make_base("llama", tmp_path / "base")
    make_adapter(model, "llama", tmp_path / "base", tmp_path / "lora")
    path = tmp_path / "lora/adapter_model.safetensors"
    whole = load_file(path)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for change, said in (
        ({first: None}, "one matrix of two"),
        ({first: torch.ones(2, 24)}, "has not the rank 3"),
        ({first: torch.ones(3, 25)}, "its base is another model"),
        ({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 24),
          "base_model.model.lm_head.lora_B.weight": torch.ones(SIZE, 3)}, "does not adapt"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(3, 9)}, "no LoRA"),
    ):  # fmt: skip
        changed: dict[str, Any] = {**whole, **change}
        save_file({name: value for name, value in changed.items() if value is not None}, path)
        with pytest.raises(UserError) as caught:
            read_model(tmp_path / "lora")
        assert said in f"{caught.value}"
    path.unlink()
    (tmp_path / "lora/adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled"):
        read_model(tmp_path / "lora")


def test_zeros_fill_what_is_not_adapted(tmp_path: Path) -> None:
    model = make_base("llama", tmp_path / "base")
    make_adapter(model, "llama", tmp_path / "base", tmp_path / "lora")
    base = read_model(tmp_path / "base").decoder
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    config, state = from_peft(base.config, read_peft_folder(tmp_path / "lora"))
    add_adapters(base, config)
    TrainedState(base).load_state_dict(state)
    changed = {
        name for name, value in merged_state(base).items() if not torch.equal(value, plain[name])
    }
    assert {name.split(".", 2)[2] for name in changed} == {
        "attention.query_key_value.weight", "feed_forward.output.weight"
    }  # fmt: skip
    heads = merged_state(base)["blocks.0.attention.query_key_value.weight"]
    assert torch.equal(heads[24:36], plain["blocks.0.attention.query_key_value.weight"][24:36])
