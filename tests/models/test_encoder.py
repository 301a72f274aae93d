"""The encoder: it sees both sides, segments and no padding; published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.models.attention import padding_mask
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import without_weights
from lmsmith.models.presets import PRESETS, bert

CONFIG = replace(bert(2, 24, 3, 32, 41), dropout=0.0)


def random_encoder(seed: int = 0) -> Encoder:
    encoder = Encoder(CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return encoder


def random_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(41, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_every_position_sees_every_other() -> None:
    encoder, tokens = random_encoder(), random_tokens(1, 9)
    before = encoder(tokens)
    for place in range(9):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 41
        moved = (encoder(changed) - before).abs().amax(dim=-1)[0]
        assert (moved > 1e-4).all()


@torch.no_grad()
def test_a_decoder_of_the_same_blocks_sees_the_left_alone() -> None:
    config = replace(CONFIG, causal=True, segments=0, embedding_norm=False, pooler=False)
    decoder, tokens = Decoder(config).eval(), random_tokens(1, 9)
    before = decoder(tokens)
    tokens[0, 5] = (tokens[0, 5] + 1) % 41
    moved = (decoder(tokens) - before).abs().amax(dim=-1)[0]
    assert (moved[:5] == 0).all()
    assert (moved[5:] > 0).all()


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    encoder, tokens = random_encoder(), random_tokens(2, 9)
    lengths = torch.tensor([9, 5])
    padded = encoder(tokens, mask_bts=padding_mask(lengths, 9))
    torch.testing.assert_close(padded[1, :5], encoder(tokens[1:, :5])[0], rtol=0, atol=2e-6)
    tokens[1, 5:] = (tokens[1, 5:] + 7) % 41
    assert torch.equal(encoder(tokens, mask_bts=padding_mask(lengths, 9))[1, :5], padded[1, :5])
    assert not torch.allclose(encoder(tokens)[1, :5], padded[1, :5], atol=1e-3)


@torch.no_grad()
def test_segments_are_told_apart() -> None:
    encoder, tokens = random_encoder(), random_tokens(1, 6)
    first = encoder(tokens)
    assert torch.equal(first, encoder(tokens, segments_bt=torch.zeros_like(tokens)))
    second = encoder(tokens, segments_bt=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    assert ((first - second).abs().amax(dim=-1) > 1e-3).all()


def test_the_pooler_reads_the_first_token() -> None:
    encoder, hidden = random_encoder(), torch.randn(2, 5, 24)
    assert encoder.pooler is not None
    expected = torch.tanh(hidden[:, 0] @ encoder.pooler.weight.T + encoder.pooler.bias)
    torch.testing.assert_close(encoder.pooled(hidden), expected)
    plain = Encoder(replace(CONFIG, pooler=False))
    assert torch.equal(plain.pooled(hidden), hidden[:, 0])


@pytest.mark.parametrize(
    ("preset", "count"), [("bert-base", 109_482_240), ("bert-large", 335_141_888)]
)
def test_the_published_sizes_are_met_exactly(preset: str, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[preset].config
    with without_weights():
        ours = Encoder(config)
        theirs = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.resolved_ffn_width,
            )
        )
    assert config.parameters == count
    assert sum(each.numel() for each in ours.parameters()) == count
    assert sum(each.numel() for each in theirs.parameters()) == count


def test_decoders_and_encoders_refuse_each_others_configs() -> None:
    for setting in ({"causal": False}, {"segments": 2}, {"embedding_norm": True}, {"pooler": True}):
        with pytest.raises(UserError, match="this config is an encoder's"):
            Decoder(replace(PRESETS["tiny-gpt1"].config, **setting))
    with pytest.raises(UserError, match="this config is a decoder's"):
        Encoder(PRESETS["tiny-gpt1"].config)


def test_initialisation_leaves_a_post_norm_stack_unscaled() -> None:
    encoder = Encoder(replace(CONFIG, layers=4, width=96))
    encoder.initialise(torch.Generator().manual_seed(0))
    for name, parameter in encoder.named_parameters():
        if name.endswith("weight") and "norm" not in name:
            assert 0.018 < float(parameter.detach().std()) < 0.022, name
