"""Emulators and adapters of offsite-tuning: what is kept, what learns, and what fits where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder, state_digest
from lmsmith.models.folder import load_decoder
from lmsmith.models.offsite import (
    adapter_state,
    emulator_layers,
    make_emulator,
    plug,
    put_adapters,
    read_emulated,
    read_offsite_adapters,
    save_offsite_adapters,
    train_only_adapters,
    train_only_middle,
)
from tiny_models import random_decoder

CONFIG = ModelConfig(7, 16, 2, 16, 11)
STYLES = {
    "gpt2": CONFIG,
    "gpt1": ModelConfig(7, 16, 2, 16, 11, norm_position="post"),
    "llama": ModelConfig(
        7, 16, 2, 16, 11, norm="rms", positions="rotary", activation="swiglu", kv_heads=1,
        qkv_bias=False, attention_output_bias=False, ffn_bias=False, tied_embeddings=False,
    ),
    "banded": ModelConfig(7, 16, 2, 16, 11, attention_pattern=("dense", "banded"), window=3),
}  # fmt: skip
TOKENS = torch.tensor([[1, 5, 2, 9, 10, 3, 3, 7], [4, 4, 0, 8, 1, 2, 6, 5]])


def tuned(decoder: Decoder, adapter_layers: int, seed: int) -> None:
    """Change every weight of the adapters."""
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(decoder, adapter_layers)
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }
    put_adapters(decoder, moved, adapter_layers)


def test_the_layers_of_an_emulator() -> None:
    assert emulator_layers(30, 2, 8) == [0, 1, 2, 6, 9, 13, 16, 20, 23, 27, 28, 29]
    assert emulator_layers(7, 2, 2) == [0, 1, 2, 4, 5, 6]
    assert emulator_layers(3, 1, 1) == [0, 1, 2]
    for wrong, said in (
        ((4, 2, 1), "leave no middle of 4 layers"),
        ((7, 0, 1), "adapters of 0 layers"),
        ((7, 2, 4), "4 of the 3 layers between"),
        ((7, 2, 0), "0 of the 3 layers between"),
    ):
        with pytest.raises(UserError, match=said):
            emulator_layers(*wrong)


@pytest.mark.parametrize("style", STYLES)
def test_an_emulator_without_a_dropped_layer_is_the_full_model_to_the_bit(style: str) -> None:
    full = random_decoder(STYLES[style])
    emulator, about = make_emulator(full, 2, 3)
    assert torch.equal(emulator(TOKENS), full(TOKENS))
    assert (about.adapter_layers, about.layers) == (2, 7)
    assert about.fingerprint == state_digest(full)


@pytest.mark.parametrize("style", STYLES)
def test_states_are_those_between_the_blocks(style: str) -> None:
    full = random_decoder(STYLES[style])
    entering, third, last = full.states((0, 3, 7), TOKENS)
    assert torch.equal(full.final_norm(last), full(TOKENS))
    positions = torch.arange(TOKENS.shape[1])[None]
    assert torch.equal(entering, full.embed(TOKENS, positions))
    few, _ = make_emulator(full, 1, 1)  # blocks 0, 1 and 6
    both = few.states((2,), TOKENS)[0], full.states((2,), TOKENS)[0]
    assert torch.equal(*both)
    assert not torch.equal(third, both[0])


@pytest.mark.parametrize("style", STYLES)
def test_untouched_adapters_leave_the_full_model_to_the_bit(style: str, tmp_path: Path) -> None:
    full = random_decoder(STYLES[style])
    before = {name: value.clone() for name, value in full.state_dict().items()}
    emulator, about = make_emulator(full, 2, 1)
    save_offsite_adapters(tmp_path / "adapters", emulator, about, {})
    plug(full, tmp_path / "adapters")
    assert all(torch.equal(value, before[name]) for name, value in full.state_dict().items())


def test_only_the_adapters_weights_change_and_each_goes_to_its_own_layer(tmp_path: Path) -> None:
    full = random_decoder(CONFIG)
    before = {name: value.clone() for name, value in full.state_dict().items()}
    emulator, about = make_emulator(full, 2, 1)
    tuned(emulator, 2, seed=4)
    save_offsite_adapters(tmp_path / "adapters", emulator, about, {})
    plug(full, tmp_path)  # the run's folder, too
    of_emulator = emulator.state_dict()
    for name, value in full.state_dict().items():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else 3
        if 2 <= layer < 5:
            assert torch.equal(value, before[name]), name
        else:
            theirs = name.replace(
                f"blocks.{layer}.", f"blocks.{layer if layer < 2 else layer - 2}."
            )
            assert torch.equal(value, of_emulator[theirs]), name
            assert not torch.equal(value, before[name]), name
    saved = load_file(tmp_path / "adapters/adapter.safetensors")
    assert saved.keys() == adapter_state(full, 2).keys()
    first_upper = full.state_dict()["blocks.5.attention.output.weight"]
    assert torch.equal(saved["upper.0.attention.output.weight"], first_upper)


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    decoder.zero_grad()
    decoder.logits(decoder(TOKENS)).square().mean().backward()  # type: ignore[no-untyped-call]
    return {
        name: value.grad
        for name, value in decoder.named_parameters()
        if value.grad is not None and value.grad.abs().max() > 0
    }


def test_gradients_reach_the_lower_adapter_through_the_frozen_middle() -> None:
    emulator, _ = make_emulator(random_decoder(CONFIG), 2, 2)
    everything = gradients(emulator)
    train_only_adapters(emulator, 2)
    found = gradients(emulator)
    assert {int(name.split(".")[1]) for name in found} == {0, 1, 4, 5}
    for name, value in found.items():
        torch.testing.assert_close(value, everything[name])
    train_only_middle(emulator, 2)
    assert {int(name.split(".")[1]) for name in gradients(emulator)} == {2, 3}


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    full = random_decoder(CONFIG)
    emulator, about = make_emulator(full, 2, 1)
    save_offsite_adapters(tmp_path, emulator, about, {})
    with pytest.raises(UserError, match="other weights"):
        plug(random_decoder(CONFIG, seed=1), tmp_path)
    with pytest.raises(UserError, match="a model of 7 layers, and this one has 5"):
        plug(random_decoder(ModelConfig(5, 16, 2, 16, 11)), tmp_path)
    with pytest.raises(UserError, match=r"has the shape \(16,\), not \(8,\)"):
        put_adapters(
            random_decoder(ModelConfig(7, 8, 2, 16, 11)), read_offsite_adapters(tmp_path)[1], 2
        )
    with pytest.raises(UserError, match="is not in both"):
        put_adapters(full, read_offsite_adapters(tmp_path)[1], 1)
    with pytest.raises(UserError, match="offsite plug MODEL"):
        load_decoder(tmp_path)


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    full = random_decoder(CONFIG)
    emulator, about = make_emulator(full, 2, 1)
    with pytest.raises(UserError, match="no tuned adapters"):
        read_offsite_adapters(tmp_path)
    save_offsite_adapters(tmp_path, emulator, about, {})
    file, config = tmp_path / "adapter.safetensors", tmp_path / "config.json"
    whole, said = file.read_bytes(), config.read_text()
    file.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="cannot be read as weights"):
        plug(full, tmp_path)
    state = load_file_of(whole, tmp_path)
    state["lower.0.attention_norm.weight"] = torch.ones(16, dtype=torch.int64)
    save_file(state, file)
    with pytest.raises(UserError, match="type int64"):
        plug(full, tmp_path)
    file.write_bytes(whole)
    for change in ({"emulator": 3}, {"emulator": {"layers": 7}}, {"emulator": {"layers": "x"}}):
        config.write_text(json.dumps({**json.loads(said), **change}))
        with pytest.raises(UserError, match="emulator"):
            plug(full, tmp_path)
    config.write_text(json.dumps({"kind": "decoder"}))
    with pytest.raises(UserError, match="no emulator"):
        read_emulated(tmp_path)


def load_file_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    path = folder / "again.safetensors"
    path.write_bytes(content)
    return load_file(path)
