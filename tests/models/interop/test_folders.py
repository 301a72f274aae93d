"""Hugging Face folders: whole or in parts, never pickled, and all that is unsupported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.folders import (
    read_transformers_config,
    read_transformers_folder,
    write_transformers_model,
)

CONFIG = ModelConfig(2, 32, 4, 16, 40, ffn_width=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_transformers_model(
        tmp_path,
        CONFIG,
        Decoder(CONFIG).state_dict(),
        tokens={"bos_token_id": 0, "eos_token_id": [4, 0], "pad_token_id": 0},
    )
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def in_parts(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_weights_in_parts_are_the_whole(folder: Path) -> None:
    config, whole = read_transformers_folder(folder)
    in_parts(folder)
    again, parts = read_transformers_folder(folder)
    assert config == again == read_transformers_config(folder) == CONFIG
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_files_say_what_ends_a_reply(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 4
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": [4, 0],
        "pad_token_id": 0,
    }


def test_a_missing_part_is_named(folder: Path) -> None:
    in_parts(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002"):
        read_transformers_folder(folder)


def test_a_part_elsewhere_is_refused(folder: Path) -> None:
    in_parts(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="is not a file beside it"):
        read_transformers_folder(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        read_transformers_folder(folder)
    assert "its weights are pickled (pytorch_model.bin)" in caught.value.problem
    assert "save_pretrained" in caught.value.fix
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        read_transformers_folder(folder)


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        read_transformers_folder(folder)


def test_all_that_is_unsupported_is_named_at_once(folder: Path) -> None:
    change(
        folder,
        architectures=["GPT2ForSequenceClassification"],
        activation_function="silu",
        scale_attn_by_inverse_layer_idx=True,
        quantization_config={"bits": 4},
        layer_types=["full_attention", "sliding_attention"],
    )
    with pytest.raises(UserError) as caught:
        read_transformers_folder(folder)
    for key in (
        "architectures",
        "activation_function",
        "scale_attn_by_inverse_layer_idx",
        "quantization_config",
        "layer_types",
    ):
        assert key in str(caught.value)


def test_llamas_variants_are_named(folder: Path) -> None:
    llama = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "gelu",
        "sliding_window": 128,
        "rope_parameters": {"rope_type": "longrope", "partial_rotary_factor": 0.5, "mscale": 2.0},
    }
    (folder / "config.json").write_text(json.dumps(llama))
    with pytest.raises(UserError) as caught:
        read_transformers_config(folder)
    for key in ("hidden_act", "sliding_window", "rope_type", "partial_rotary_factor", "mscale"):
        assert key in str(caught.value)


def test_other_architectures_are_named(folder: Path) -> None:
    change(folder, model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(
        UserError, match=r"mamba \(MambaForCausalLM\): not an architecture.*\n.*OpenAIGPTLMHead"
    ):
        read_transformers_folder(folder)
