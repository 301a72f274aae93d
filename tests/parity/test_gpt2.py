"""The decoder equals GPT-2 of transformers, given the same weights."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training.losses import linear_cross_entropy_sum

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not here")

CONFIG = ModelConfig(layers=3, width=48, heads=4, context=40, vocabulary_size=101)

OURS = {
    "wte": "token_embedding",
    "wpe": "position_embedding",
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.inner",
    "mlp.c_proj": "feed_forward.output",
    "ln_f": "final_norm",
}
"""transformers' name of each part → ours."""


def our_name(name: str) -> str:
    name = name.removeprefix("transformer.")
    prefix = ""
    if name.startswith("h."):
        _, layer, name = name.split(".", 2)
        prefix = f"blocks.{layer}."
    part, kind = name.rsplit(".", 1)
    return f"{prefix}{OURS[part]}.{kind}"


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, Decoder]:
    """transformers' model with random weights (norms and biases too), and ours with the same."""
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=101, n_positions=40, n_embd=48, n_layer=3, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(11)
    weights: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            centre = float(".ln_" in name and name.endswith("weight"))
            parameter.normal_(centre, 0.2, generator=generator)
            linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            weights[our_name(name)] = parameter.T.clone() if linear else parameter.clone()
    decoder = Decoder(CONFIG)
    decoder.load_state_dict(weights)
    return peer, decoder


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(101, (3, 40), generator=torch.Generator().manual_seed(12))


def test_logits(pair: tuple[torch.nn.Module, Decoder], tokens: Tensor) -> None:
    peer, decoder = pair
    with torch.no_grad():
        ours, theirs = decoder.logits(decoder(tokens)), peer(tokens).logits
    assert float(theirs.std()) > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_loss_and_gradients(pair: tuple[torch.nn.Module, Decoder], tokens: Tensor) -> None:
    peer, decoder = pair
    theirs = peer(tokens, labels=tokens).loss
    theirs.backward()
    targets = torch.cat([tokens[:, 1:], torch.full((3, 1), NO_TARGET)], dim=1)
    loss = linear_cross_entropy_sum(decoder(tokens), decoder.token_embedding.weight, targets)
    ours = loss / (3 * 39)
    ours.backward()  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    gradients = dict(decoder.named_parameters())
    for name, parameter in peer.named_parameters():
        expected, found = parameter.grad, gradients[our_name(name)].grad
        assert expected is not None, name
        assert found is not None, name
        scale = float(expected.abs().max()) + 1e-3
        found = found.T if found.shape != expected.shape else found
        if name.endswith("attn.c_proj.weight"):  # square, so its shape does not tell
            found = found.T
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale, msg=name)


def test_padded_rows(pair: tuple[torch.nn.Module, Decoder], tokens: Tensor) -> None:
    """With padding on the left, transformers must be told positions; we count them."""
    from lmsmith.rlhf.rollout import pad_batch
    from padding import padded_mask, padded_positions

    peer, decoder = pair
    batch = pad_batch([tokens[0, :9].tolist(), tokens[1, :23].tolist(), tokens[2, :16].tolist()])
    with torch.no_grad():
        positions, mask = padded_positions(batch.valid_bt), padded_mask(batch.valid_bt)
        ours = decoder.logits(decoder(batch.tokens_bt, positions, mask))
        theirs = peer(
            batch.tokens_bt,
            attention_mask=batch.valid_bt.long(),
            position_ids=positions,
        ).logits
    valid = batch.valid_bt
    torch.testing.assert_close(ours[valid], theirs[valid], rtol=0, atol=1e-4)
