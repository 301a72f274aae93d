"""Low-rank adapters against plain models whose weights are W + (α/r) B A."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from lmsmith.core.config import problems_in
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import decoder_for_reading
from lmsmith.models.adapters import (
    AdaptedLinear,
    AdapterConfig,
    TrainedState,
    adapt,
    adapted_layers,
    has_adapters,
    merged_state,
)
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.training.machine import resolve_machine

sys.path.insert(0, str(Path(__file__).parent))

from styles import LLAMA, STYLES, random_decoder

TOKENS = torch.randint(0, 41, (2, 17), generator=torch.Generator().manual_seed(3))
SETTINGS = AdapterConfig(rank=3, alpha=5.0)


def adapted(config: ModelConfig, settings: AdapterConfig = SETTINGS) -> Decoder:
    """A random decoder whose adapters are random as well, and not zero."""
    decoder = random_decoder(config)
    adapt(decoder, settings, torch.float32, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, layer in adapted_layers(decoder):
        layer.up.data.normal_(0.0, 0.3, generator=generator)
    return decoder


def plain(decoder: Decoder) -> Decoder:
    found = Decoder(decoder.config).eval()
    found.load_state_dict(merged_state(decoder))
    return found


@pytest.fixture(params=STYLES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    found: ModelConfig = STYLES[request.param]
    return found


def test_an_adapted_model_begins_as_the_one_it_was_made_from(config: ModelConfig) -> None:
    decoder = random_decoder(config)
    before = copy.deepcopy(decoder)
    adapt(decoder, SETTINGS, torch.float32, seed=1)
    torch.testing.assert_close(decoder(TOKENS), before(TOKENS), rtol=0, atol=0)
    for name, value in merged_state(decoder).items():
        assert torch.equal(value, before.state_dict()[name]), name


def test_the_merged_model_computes_the_same(config: ModelConfig) -> None:
    decoder = adapted(config)
    merged = plain(decoder)
    assert not torch.allclose(merged(TOKENS), random_decoder(config)(TOKENS), atol=0.1)
    torch.testing.assert_close(decoder(TOKENS), merged(TOKENS), rtol=1e-4, atol=1e-4)
    reader = decoder_for_reading(decoder)
    torch.testing.assert_close(reader(TOKENS), merged(TOKENS), rtol=0, atol=0)


def test_gradients_are_the_chain_rule_of_the_whole_weights_gradient() -> None:
    """With G the gradient of W + s B A: ∂A = s Bᵀ G, ∂B = s G Aᵀ."""
    decoder = adapted(LLAMA)
    merged = plain(decoder)
    for model in (decoder, merged):
        model.logits(model(TOKENS)).log_softmax(dim=-1).square().mean().backward()
    whole = dict(merged.named_parameters())
    for name, layer in adapted_layers(decoder):
        gradient = whole[f"{name}.weight"].grad
        assert gradient is not None
        scale = SETTINGS.alpha / SETTINGS.rank
        down, up = scale * layer.up.T @ gradient, scale * gradient @ layer.down.T
        torch.testing.assert_close(layer.down.grad, down, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.up.grad, up, rtol=1e-3, atol=1e-5)


def test_nothing_but_adapters_and_the_head_is_trained() -> None:
    model = ScalarModel(random_decoder(LLAMA))
    adapt(model, SETTINGS, torch.float32, seed=1)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all(name.endswith((".down", ".up")) for name in trained - {"head.weight", "head.bias"})
    count = sum(value.numel() for value in model.parameters() if value.requires_grad)
    layers = [layer for _, layer in adapted_layers(model)]
    assert len(layers) == 5 * LLAMA.layers
    rows = sum(layer.in_features + layer.out_features for layer in layers)
    assert count == SETTINGS.rank * rows + LLAMA.width + 1


def test_some_parts_alone_and_none() -> None:
    decoder = adapted(LLAMA, AdapterConfig(rank=2, parts=("attention",)))
    assert {name.split(".")[2] for name, _ in adapted_layers(decoder)} == {"attention"}
    decoder = random_decoder(LLAMA)
    adapt(decoder, AdapterConfig(rank=0), torch.float32, seed=1)
    assert not has_adapters(decoder)
    assert all(value.requires_grad for value in decoder.parameters())


def test_frozen_weights_in_bf16_compute_what_autocast_does() -> None:
    machine = resolve_machine(MachineConfig(precision="bf16"))
    decoder = adapted(LLAMA)
    narrow = random_decoder(LLAMA)
    adapt(narrow, SETTINGS, torch.bfloat16, seed=1)
    narrow.load_state_dict({k: v for k, v in decoder.state_dict().items() if ".up" in k}, False)
    assert {layer.weight.dtype for _, layer in adapted_layers(narrow)} == {torch.bfloat16}
    assert narrow.token_embedding.weight.dtype == torch.float32
    with torch.no_grad(), machine.autocast():
        torch.testing.assert_close(narrow(TOKENS), decoder(TOKENS), rtol=0, atol=0)


def test_a_checkpoint_holds_what_is_trained_and_nothing_else() -> None:
    first, second = (ScalarModel(adapted(LLAMA)) for _ in range(2))
    first.shift.fill_(2.0)
    for _, layer in adapted_layers(first):
        layer.down.data.add_(1.0)
    state = {name: value.clone() for name, value in TrainedState(first).state_dict().items()}
    assert not [name for name in state if name.endswith("token_embedding.weight")]
    assert {"shift", "head.weight"} < set(state)
    TrainedState(second).load_state_dict(state)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    del state["shift"]
    with pytest.raises(RuntimeError, match="shift"):
        TrainedState(second).load_state_dict(state)
    whole = random_decoder(LLAMA)
    assert set(TrainedState(whole).state_dict()) == set(whole.state_dict())


def test_a_layer_of_its_own() -> None:
    linear = torch.nn.Linear(7, 4)
    layer = AdaptedLinear(linear, rank=2, alpha=3.0)
    layer.down.data.normal_()
    layer.up.data.normal_()
    x = torch.randn(5, 7)
    expected = linear(x) + 1.5 * x @ layer.down.T @ layer.up.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged_weight(), linear.weight + 1.5 * layer.up @ layer.down)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (AdapterConfig(rank=-1), "rank"),
        (AdapterConfig(alpha=0.0), "alpha"),
        (AdapterConfig(parts=()), "parts"),
    ],
)
def test_settings_out_of_range_are_named(settings: AdapterConfig, key: str) -> None:
    assert [each.key for each in problems_in(settings)] == [key]
