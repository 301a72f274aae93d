"""Attention weights against a plain softmax, written out, and against what attention gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lmsmith.models.attention import SelfAttention
from lmsmith.models.positions import rotate
from models.styles import STYLES, random_decoder

LENGTH, QUERIES = 13, 5


def by_hand(attention: SelfAttention, x_td: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
    """Weights (heads, t, t), one score at a time, and what comes of them (t, width)."""
    projected = attention.query_key_value(x_td[None]).view(1, LENGTH, -1, attention.head_width)
    heads, shared = attention.heads, attention.kv_heads
    query, key, value = projected.transpose(1, 2).split([heads, shared, shared], dim=1)
    if rotation is not None:
        query, key = rotate(query, rotation), rotate(key, rotation)
    weights = torch.zeros(heads, LENGTH, LENGTH)
    for head in range(heads):
        other = head // (heads // shared)
        for place in range(LENGTH):
            first = max(0, place - attention.window + 1) if attention.window else 0
            scores = [
                float(query[0, head, place] @ key[0, other, seen]) / math.sqrt(attention.head_width)
                for seen in range(first, place + 1)
            ]
            most = max(scores)
            total = math.fsum(math.exp(score - most) for score in scores)
            for seen, score in enumerate(scores, first):
                weights[head, place, seen] = math.exp(score - most) / total
    mixed = torch.stack([weights[h] @ value[0, h // (heads // shared)] for h in range(heads)], 1)
    return weights, attention.output(mixed.reshape(LENGTH, -1))


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_weights_are_a_plain_softmax_and_give_what_attention_gives(style: str) -> None:
    decoder = random_decoder(STYLES[style])
    tokens = torch.randint(
        STYLES[style].vocabulary_size, (LENGTH,), generator=torch.Generator().manual_seed(3)
    ).tolist()
    seen: list[tuple[SelfAttention, Tensor, Any, Tensor]] = []

    def listen(module: Any, given: Any, result: Tensor) -> None:
        seen.append((module, given[0][0], given[2], result[0]))

    hooks = [block.attention.register_forward_hook(listen) for block in decoder.blocks]  # type: ignore[union-attr, operator]
    decoder(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    found = decoder.attention_weights(tokens, QUERIES)
    assert len(found) == len(seen)
    for weights_hqt, (attention, x_td, rotation, result_td) in zip(found, seen, strict=True):
        expected, gives = by_hand(attention, x_td, rotation)
        torch.testing.assert_close(gives, result_td, atol=2e-5, rtol=2e-4)
        torch.testing.assert_close(weights_hqt, expected[:, -QUERIES:], atol=2e-6, rtol=1e-4)


def test_a_text_shorter_than_the_rows_asked_for() -> None:
    found = random_decoder(STYLES["llama"]).attention_weights([1, 2], 10)
    assert found[0].shape == (4, 2, 2)
    torch.testing.assert_close(found[0].sum(-1), torch.ones(4, 2))
