"""What holds of the decoder holds of every choice of its parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.models.attention import packed_mask
from lmsmith.models.blocks import Block
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_model, save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.losses import linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine, resolve_machine

sys.path.insert(0, str(Path(__file__).parent))

from styles import STYLES, random_decoder


@pytest.fixture(params=STYLES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return STYLES[request.param]


TOKENS = torch.randint(41, (2, 19), generator=torch.Generator().manual_seed(1))


def gradients(decoder: Decoder, mask_bts: Tensor | None = None) -> dict[str, Tensor]:
    decoder.zero_grad()
    hidden = decoder(TOKENS, mask_bts=mask_bts)
    linear_cross_entropy_sum(hidden, decoder.unembedding_weight, TOKENS).backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


def test_no_position_sees_a_later_token(config: ModelConfig) -> None:
    decoder, changed = random_decoder(config), TOKENS.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 41
    with torch.no_grad():
        one, other = decoder(TOKENS), decoder(changed)
    assert torch.equal(one[:, :11], other[:, :11])
    assert (one[:, 11] != other[:, 11]).any()


@pytest.mark.parametrize("pieces", [[1] * 19, [7, 1, 1, 10]])
def test_reading_in_pieces_equals_reading_at_once(config: ModelConfig, pieces: list[int]) -> None:
    decoder = random_decoder(config)
    reader = InferenceDecoder(decoder)
    cache = reader.new_cache(2, 19)
    rows = [cache.open(), cache.open()]
    parts = []
    for piece in TOKENS.split(pieces, dim=1):
        spans = list(zip(rows, piece.tolist(), strict=True))
        parts.append(reader.read(spans, cache).view(2, -1, config.width))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, 1), decoder(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_other_ways_to_compute_give_the_same_gradients(config: ModelConfig, masked: bool) -> None:
    """Scores written out, and activations made again in the backward pass."""
    decoder = random_decoder(config)
    mask = packed_mask(torch.tensor([[0] * 6 + [1] * 13] * 2)) if masked else None
    plain = gradients(decoder, mask)
    assert len(plain) == len(list(decoder.parameters()))
    decoder.checkpoint_activations = True
    again = gradients(decoder, mask)
    for block in decoder.blocks:
        assert isinstance(block, Block)
        block.attention.explicit = True
    explicit = gradients(decoder, mask)
    for name, value in plain.items():
        assert torch.equal(again[name], value), name
        scale = float(value.abs().max()) + 1e-3
        torch.testing.assert_close(explicit[name], value, rtol=0, atol=1e-5 * scale, msg=name)


def test_a_model_comes_back_from_its_folder(config: ModelConfig, tmp_path: Path) -> None:
    decoder = random_decoder(config)
    save_model(tmp_path / "model", decoder, Tokenizer.train(["to be or not to be"], 270), {})
    again = load_model(tmp_path / "model")
    assert isinstance(again, Decoder)
    assert again.config == config
    with torch.no_grad():
        assert torch.equal(again.logits(again(TOKENS)), decoder.logits(decoder(TOKENS)))


def test_reading_only_rounds_as_training_does(config: ModelConfig) -> None:
    """In bf16: what the inference decoder gives is what autocast gives, but for their rounding."""
    decoder = random_decoder(config)
    machine: ResolvedMachine = resolve_machine(MachineConfig(precision="bf16"))
    reader = InferenceDecoder(decoder, machine)
    cache = reader.new_cache(2, 19)
    rows = [cache.open(), cache.open()]
    with torch.no_grad():
        exact = decoder.logits(decoder(TOKENS))
        with machine.autocast():
            trained = decoder.logits(decoder(TOKENS)).float()
    written = [
        reader.read(
            [(row, TOKENS[row_number, piece].tolist()) for row_number, row in enumerate(rows)],
            cache,
        )
        for piece in (slice(0, 18), slice(18, 19))
    ]
    hidden = torch.cat([part.view(2, -1, config.width) for part in written], dim=1)
    read = reader.logits(hidden.flatten(0, 1)).view_as(exact)
    spread = float(exact.std())
    assert float((trained - exact).std()) < 0.05 * spread
    assert float((read - exact).std()) < 0.05 * spread


def test_dropout_reaches_every_place(config: ModelConfig) -> None:
    decoder = random_decoder(config).train()
    expected = decoder(TOKENS)
    block = decoder.blocks[1]
    assert isinstance(block, Block)
    for place, name in ((decoder.dropout, "p"), (block.dropout, "p"), (block.attention, "dropout")):
        setattr(place, name, 0.5)
        assert not torch.equal(decoder(TOKENS), expected)
        setattr(place, name, 0.0)
    assert torch.equal(decoder(TOKENS), expected)
