"""What a decoder attends to, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmsmith.models.decoder import Block, Decoder


@torch.no_grad()
def attention_weights(decoder: Decoder, tokens: Sequence[int], queries: int) -> list[Tensor]:
    """softmax(QKᵀ/√d_k + mask) of every layer, for the last tokens of a text.

    Args:
        decoder: in evaluation mode.
        tokens: the t tokens of the text, which are all read.
        queries: how many of the last tokens' rows are given.

    Returns:
        One float32 tensor (heads, queries, t) a layer; rows sum to 1.
    """
    config = decoder.config
    tokens_bt = torch.tensor([list(tokens)])
    positions_bt = torch.arange(tokens_bt.shape[1])[None]
    x_btd = decoder._embed(tokens_bt, positions_bt)
    biases = decoder._biases(None, tokens_bt.shape[1], None, x_btd.dtype, x_btd.device)
    rotation = None if decoder.rotary is None else decoder.rotary(positions_bt)
    found = []
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        entering = block.attention_norm(x_btd) if config.norm_position == "pre" else x_btd
        found.append(block.attention.weights(entering, rotation, queries)[0])
        x_btd = block.forward(x_btd, biases[config.attention_kind(layer)], None, layer, rotation)
    return found
