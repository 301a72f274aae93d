"""Masks make rows with several documents, or padding, equal to each sequence on its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.models.attention import (
    attention_bias,
    packed_mask,
)
from lmsmith.models.attention_kernels import (
    SHORT_LENGTH,
    explicit_attention,
    plain_attention,
    trains_plainly,
)
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.dropout import drop
from padding import padded_mask, padded_positions

CONFIG = ModelConfig(layers=2, width=24, heads=3, context=32, vocabulary_size=41)


def random_decoder(seed: int = 0) -> Decoder:
    """Weights large enough that every hidden state depends on all that it may see."""
    decoder = Decoder(CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.4, generator=generator)
    return decoder


DECODER = random_decoder()


def alone(tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return DECODER(tokens[None])[0]


def test_a_packed_row_equals_its_documents_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 1, 9, 3]
    pieces = [torch.randint(41, (length,), generator=generator) for length in lengths]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = DECODER(torch.cat(pieces)[None], positions, packed_mask(documents))[0]
    torch.testing.assert_close(
        packed, torch.cat([alone(piece) for piece in pieces]), rtol=1e-4, atol=1e-5
    )


def test_a_padded_row_equals_the_sequence_alone_whatever_side_the_padding_is_on() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(41, (3, 12), generator=generator)
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[0, :4] = False
    valid[1, 9:] = False
    valid[2, :3] = valid[2, 10:] = False
    with torch.no_grad():
        padded = DECODER(tokens, padded_positions(valid), padded_mask(valid))
    assert torch.isfinite(padded).all()
    for row in range(3):
        torch.testing.assert_close(
            padded[row][valid[row]], alone(tokens[row][valid[row]]), rtol=1e-4, atol=1e-5
        )


def test_masks_and_positions_by_hand() -> None:
    documents = torch.tensor([[0, 0, 1]])
    assert packed_mask(documents).int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]
    valid = torch.tensor([[False, True, True]])
    assert padded_mask(valid).int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]
    assert padded_positions(valid).tolist() == [[0, 0, 1]]
    bias = attention_bias(packed_mask(documents), torch.float32)
    assert bias is not None
    assert bias.shape == (1, 1, 3, 3)
    assert bias[0, 0, 1].tolist() == [0.0, 0.0, float("-inf")]
    assert attention_bias(None, torch.float32) is None


@pytest.mark.parametrize("block", [1, 4, 9, 64])
@pytest.mark.parametrize("masked", [True, False])
def test_explicit_attention_equals_the_fused_kernel(masked: bool, block: int) -> None:
    parts, direction, bias = attention_case(masked)
    found = []
    for explicit in (True, False):
        query, key, value = (part.clone().requires_grad_() for part in parts)
        if explicit:
            mixed = explicit_attention(query, key, value, bias, block)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=bias is None
            )
        found.append((mixed, *torch.autograd.grad(mixed, (query, key, value), direction)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_explicit_attention_in_bf16_is_close_and_in_its_type() -> None:
    parts, direction, bias = attention_case(masked=True)
    exact = [part.clone().requires_grad_() for part in parts]
    rounded = [part.bfloat16().requires_grad_() for part in parts]
    results = []
    for leaves in (exact, rounded):
        mixed = explicit_attention(*leaves, bias, 4)
        grown = torch.autograd.grad(mixed, leaves, direction.to(mixed.dtype))
        results.append((mixed.detach(), *grown))
    for one, other in zip(*results, strict=True):
        assert other.dtype == torch.bfloat16
        assert float((one - other.float()).norm() / one.norm()) < 0.03


@pytest.mark.parametrize("rule", ["causal", "all", "masked"])
def test_plain_attention_equals_the_fused_kernel(rule: str) -> None:
    parts, direction, bias = attention_case(masked=rule == "masked")
    causal = rule == "causal"
    found = []
    for plainly in (True, False):
        query, key, value = (part.clone().requires_grad_() for part in parts)
        if plainly:
            mixed = plain_attention(query, key, value, bias, causal)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=causal
            )
        found.append((mixed, *torch.autograd.grad(mixed, (query, key, value), direction)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_of_plain_attention_is_on_the_weights() -> None:
    parts, direction, bias = attention_case(masked=True)
    query, key, value = (part.clone().requires_grad_() for part in parts)
    torch.manual_seed(4)
    mixed = plain_attention(query, key, value, bias, causal=False, dropout=0.25)
    found = mixed.detach(), *torch.autograd.grad(mixed, (query, key, value), direction)

    torch.manual_seed(4)
    factors_bhts = drop(torch.ones(2, 3, 9, 9), 0.25)
    assert 0 < int((factors_bhts == 0).sum()) < factors_bhts.numel()
    scores_bhts = query @ key.transpose(-1, -2) / 2.0 + bias
    expected = (scores_bhts.softmax(dim=-1) * factors_bhts) @ value
    exact = expected.detach(), *torch.autograd.grad(expected, (query, key, value), direction)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_plain_attention_is_for_training_with_dropout_or_on_short_rows_in_bf16() -> None:
    query = torch.zeros(1, 1, SHORT_LENGTH, 4, dtype=torch.bfloat16, requires_grad=True)
    assert trains_plainly(query, query, 0.0)
    wide = query.detach().float().requires_grad_()
    assert not trains_plainly(wide, wide, 0.0)
    assert trains_plainly(wide, wide, 0.1)
    assert not trains_plainly(query.detach(), query.detach(), 0.1)
    longer = torch.cat([query, query], dim=2)
    assert not trains_plainly(longer, longer, 0.0)
    with torch.no_grad():
        assert not trains_plainly(query, query, 0.1)


def attention_case(masked: bool) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Query, key and value (2, 3, 9, 4), a direction, and the bias of two packed rows."""
    generator = torch.Generator().manual_seed(3)
    query, key, value, direction = (
        2 * torch.randn(2, 3, 9, 4, generator=generator) for _ in range(4)
    )
    documents = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    bias = attention_bias(packed_mask(documents), torch.float32) if masked else None
    return [query, key, value], direction, bias
