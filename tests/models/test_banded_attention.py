"""Banded attention is dense attention under a band, forward and backward, and costs T · window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.models.attention import packed_mask
from lmsmith.models.attention_kernels import band_biases, banded_attention, block_columns
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from padding import padded_mask, padded_positions

CONFIG = ModelConfig(
    layers=4,
    width=24,
    heads=3,
    context=64,
    vocabulary_size=41,
    attention_pattern=("dense", "banded"),
    window=7,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def band_mask(length: int, window: int) -> Tensor:
    """Written out: query i sees column j if i − window < j ≤ i."""
    rows = [
        [place - window < column <= place for column in range(length)] for place in range(length)
    ]
    return torch.tensor(rows)[None]


@pytest.mark.parametrize("window", [1, 2, 5, 8, 16, 40])
@pytest.mark.parametrize("length", [23, 16, 5, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_dense_attention_under_the_band(window: int, length: int, masked: bool) -> None:
    parts = [2 * random(2, 3, length, 4, seed=seed) for seed in range(3)]
    direction = random(2, 3, length, 4, seed=9)
    mask = None
    allowed = band_mask(length, window).expand(2, -1, -1)
    if masked:
        documents = torch.stack([torch.arange(length) // 4, torch.arange(length) // 6])
        mask = packed_mask(documents)
        allowed = allowed & mask
    found = []
    for banded in (True, False):
        query, key, value = (part.clone().requires_grad_() for part in parts)
        if banded:
            biases = band_biases(length, window, mask, torch.float32, torch.device("cpu"))
            mixed = banded_attention(query, key, value, biases, window)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])
        found.append((mixed, *torch.autograd.grad(mixed, (query, key, value), direction)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 5, 8, 256])
def test_the_scores_held_grow_as_length_times_window(window: int) -> None:
    def scores(length: int) -> int:
        return sum(
            (rows.stop - rows.start) * (columns.stop - columns.start)
            for rows, columns in block_columns(length, window)
        )

    lengths = [16 * window, 64 * window]
    for length in lengths:
        assert length <= scores(length) <= 2 * length * window
    assert scores(lengths[1]) < 4.3 * scores(lengths[0])


def random_decoder(config: ModelConfig = CONFIG) -> Decoder:
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.4, generator=generator)
    return decoder


DECODER = random_decoder()


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(41, shape, generator=torch.Generator().manual_seed(5))


def test_a_band_forgets() -> None:
    """With banded layers alone, a token reaches window − 1 further in each layer."""
    config = ModelConfig(2, 24, 3, 64, 41, attention_pattern=("banded",), window=4)
    decoder, tokens = random_decoder(config), random_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 41
    with torch.no_grad():
        differs = (decoder(tokens) != decoder(changed)).any(dim=2)[0]
    assert differs.nonzero()[:, 0].tolist() == list(range(5, 5 + 2 * 3 + 1))


def test_packed_and_padded_rows_equal_the_sequences_alone() -> None:
    lengths = [13, 1, 16]
    tokens = random_tokens(1, 30)
    pieces = tokens[0].split(lengths)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    valid = torch.ones(2, 24, dtype=torch.bool)
    valid[0, :11] = False
    valid[1, 20:] = False
    padded_tokens = random_tokens(2, 24)
    with torch.no_grad():
        packed = DECODER(tokens, positions, packed_mask(documents))[0]
        alone = torch.cat([DECODER(piece[None])[0] for piece in pieces])
        padded = DECODER(padded_tokens, padded_positions(valid), padded_mask(valid))
        rows = [DECODER(padded_tokens[n][valid[n]][None])[0] for n in range(2)]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    for n in range(2):
        torch.testing.assert_close(padded[n][valid[n]], rows[n], rtol=1e-4, atol=1e-4)
