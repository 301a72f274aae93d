"""One decoder equals GPT-1, GPT-2, GPT-Neo and Llama of transformers, given the same weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmsmith.core.errors import UserError
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.models.attention import packed_mask
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.transformers import from_transformers, to_transformers
from lmsmith.rlhf.rollout import pad_batch
from padding import padded_mask, padded_positions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not here")

LENGTH, VOCABULARY = 40, 101

_GPT = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 48, "n_layer": 3, "n_head": 4}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_NEO = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "hidden_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "rms_norm_eps": 1e-5,
}


def _rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **settings}}


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt1": ("OpenAIGPT", _GPT | _NO_DROPOUT),
    "gpt2": ("GPT2", _GPT | _NO_DROPOUT | {"n_inner": 72}),
    "gpt2, exact gelu, untied": (
        "GPT2",
        _GPT | _NO_DROPOUT | {"activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "gpt2, relu": ("GPT2", _GPT | _NO_DROPOUT | {"activation_function": "relu"}),
    "gpt_neo": ("GPTNeo", _NEO | {"window_size": 9}),
    "gpt_neo, all banded": (
        "GPTNeo",
        _NEO | {"window_size": 4, "attention_types": [[["local"], 4]]},
    ),
    "llama, tied": ("Llama", _LLAMA | _rope(rope_type="default") | {"tie_word_embeddings": True}),
    "llama, untied, biases": (
        "Llama",
        _LLAMA | _rope(rope_type="default") | {"attention_bias": True, "mlp_bias": True},
    ),
    "llama, wide heads": ("Llama", _LLAMA | _rope(rope_type="default") | {"head_dim": 10}),
    "llama, linear": ("Llama", _LLAMA | _rope(rope_type="linear", factor=4.0)),
    "llama, dynamic": (
        "Llama",
        _LLAMA | _rope(rope_type="dynamic", factor=4.0) | {"max_position_embeddings": 16},
    ),
    "llama, llama3": (
        "Llama",
        _LLAMA
        | _rope(rope_type="llama3", factor=8.0, original_max_position_embeddings=16, **_LLAMA3),
    ),
    "llama, yarn": (
        "Llama",
        _LLAMA | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=10),
    ),
}

CLASSES = {
    "OpenAIGPT": "OpenAIGPTLMHeadModel",
    "GPT2": "GPT2LMHeadModel",
    "GPTNeo": "GPTNeoForCausalLM",
    "Llama": "LlamaForCausalLM",
}


def made(name: str, seed: int = 11) -> tuple[nn.Module, Decoder, ModelConfig]:
    """transformers' model with random weights, norms and biases too, and ours with the same."""
    family, settings = PEERS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    peer = getattr(transformers, CLASSES[family])._from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in peer.named_parameters():
            centre = float(("ln_" in key or "norm" in key) and key.endswith("weight"))
            parameter.normal_(centre, 0.2, generator=generator)
    shape, weights = from_transformers(config.to_dict(), peer.state_dict())
    decoder = Decoder(shape)
    decoder.load_state_dict(weights)
    return peer.eval(), decoder.eval(), shape


@pytest.fixture(scope="module", params=PEERS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Decoder, ModelConfig]:
    return made(request.param)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(12))


Pair = tuple[Any, Decoder, ModelConfig]


def test_logits(pair: Pair, tokens: Tensor) -> None:
    peer, decoder, _ = pair
    with torch.no_grad():
        ours, theirs = decoder.logits(decoder(tokens)), peer(tokens).logits
    assert float(theirs.std()) > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_gradients(pair: Pair, tokens: Tensor) -> None:
    """The gradients of our parameters are those of theirs, moved as the weights are."""
    peer, decoder, shape = pair
    peer.zero_grad()
    decoder.zero_grad()
    weights = torch.randn(3, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(13))
    (peer(tokens).logits.tanh() * weights).sum().backward()
    (decoder.logits(decoder(tokens)).tanh() * weights).sum().backward()
    ours = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert len(ours) == len(decoder.state_dict())
    settings, moved = to_transformers(shape, ours)
    factor = shape.width_per_head  # their query is ours / √d, so its gradient is ours × √d
    for name, parameter in peer.named_parameters():
        found = moved[name]
        if settings["model_type"] == "gpt_neo" and "q_proj" in name:
            found = found * factor
        expected = parameter.grad
        scale = float(expected.abs().max()) + 1e-3
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale, msg=name)


def test_padded_and_packed_rows(pair: Pair, tokens: Tensor) -> None:
    _, decoder, shape = pair
    if shape.rope_scaling.method == "dynamic":
        pytest.skip("its frequencies follow the row's longest position")
    rows = [tokens[0, :9].tolist(), tokens[1, :23].tolist(), tokens[2, :16].tolist()]
    batch = pad_batch(rows)
    documents = torch.tensor([[0] * 9 + [1] * 16])
    both = torch.tensor([rows[0] + rows[2]])
    positions = torch.tensor([[*range(9), *range(16)]])
    with torch.no_grad():
        padded = decoder(
            batch.tokens_bt, padded_positions(batch.valid_bt), padded_mask(batch.valid_bt)
        )
        packed = decoder(both, positions, packed_mask(documents))[0]
        alone = [decoder(torch.tensor([row]))[0] for row in rows]
    for row in range(3):
        torch.testing.assert_close(
            padded[row][batch.valid_bt[row]], alone[row], rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(packed, torch.cat([alone[0], alone[2]]), rtol=1e-4, atol=1e-4)


def test_greedy_replies_are_those_of_the_most_likely_next_tokens(
    pair: Pair, tokens: Tensor
) -> None:
    """The cache, rolling or shared, and rows that leave the batch, change no reply."""
    peer, decoder, shape = pair
    if shape.rope_scaling.method == "dynamic":
        pytest.skip("keys in a cache keep the angles of when they were made, here as there")
    prompts = [tokens[0, :9].tolist(), tokens[1, :3].tolist()]
    replies = generate(decoder, prompts, SamplingSettings(temperature=0.0, max_new_tokens=14))
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = list(prompt)
        with torch.no_grad():
            for _ in range(14):
                expected.append(int(peer(torch.tensor([expected])).logits[0, -1].argmax()))
        assert reply == expected[len(prompt) :]


def test_there_and_back(pair: Pair) -> None:
    peer, decoder, shape = pair
    settings, weights = to_transformers(shape, decoder.state_dict())
    again = type(peer)(type(peer.config)(**settings)).eval()
    missing = again.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    again.tie_weights()
    tokens = torch.randint(VOCABULARY, (1, 15), generator=torch.Generator().manual_seed(14))
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, peer(tokens).logits, rtol=1e-5, atol=1e-5)
    assert from_transformers(settings, weights)[0].parameters == shape.parameters


def test_what_does_not_fit_is_named() -> None:
    _, _, shape = made("gpt2")
    settings, weights = to_transformers(shape, Decoder(shape).state_dict())
    with pytest.raises(UserError, match="model_type = t5"):
        from_transformers(settings | {"model_type": "t5"}, weights)
    with pytest.raises(UserError, match="lack"):
        from_transformers(settings, {n: w for n, w in weights.items() if "wpe" not in n})
    with pytest.raises(UserError, match=r"without a place.*h\.0\.extra"):
        from_transformers(settings, weights | {"h.0.extra": torch.zeros(1)})
    with pytest.raises(UserError, match="has the shape"):
        from_transformers(settings | {"n_inner": 80}, weights)
    mixed = ModelConfig(2, 16, 2, 8, 20, norm="rms")
    with pytest.raises(UserError, match="no model of this shape"):
        to_transformers(mixed, Decoder(mixed).state_dict())
