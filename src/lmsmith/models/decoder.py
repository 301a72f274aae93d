"""The decoder-only transformer: embed, a stack of blocks, a final norm, tied unembedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsmith.models.attention import KeyValueCache, SelfAttention, attention_bias
from lmsmith.models.config import ModelConfig

EXPLICIT_ATTENTION_CONTEXT = 1024
"""Longest context at which training holds all attention scores at once."""


def gelu(x: Tensor) -> Tensor:
    """GELU in GPT-2's form, ½x(1 + tanh(√(2/π)(x + 0.044715x³))).

    As ½(1 + tanh u) = σ(2u), the compiler is given the sigmoid, which it makes faster code of.
    """
    result: Tensor
    if not torch.compiler.is_compiling():
        result = F.gelu(x, approximate="tanh")
        return result
    wide = x.float()
    twice_u = 2.0 * math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    result = (wide * torch.sigmoid(twice_u)).to(x.dtype)
    return result


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form, as in GPT-2) between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.inner_width)
        self.output = nn.Linear(config.inner_width, config.width)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(gelu(self.inner(x_btd)))
        return result


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_btd: Tensor,
        bias_b1ts: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_btd), bias_b1ts, cache, layer)
        x_btd = x_btd + self.dropout(attended)
        result: Tensor = x_btd + self.dropout(self.feed_forward(self.feed_forward_norm(x_btd)))
        return result


class Decoder(nn.Module):
    """GPT-2's architecture (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.checkpoint_activations = False
        self.compiled = False

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); residual projections scaled by 1/√(2 · layers); biases zero.

        GPT-2 scales the residual layers' weights by 1/√N, N their number: two in each block.
        """
        residual_scale = 0.02 / math.sqrt(2 * self.config.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("attention.output", "feed_forward.output"))
                module.weight.normal_(
                    0.0, residual_scale if residual else 0.02, generator=generator
                )
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)

    def compile_blocks(self) -> None:
        """Compile one block for training; all share the result, only their weights differ."""
        self.compiled = True
        self.attend_explicitly()
        for block in self.blocks:
            block.compile(dynamic=False)

    def attend_explicitly(self) -> None:
        """Hold all attention scores at once, for training, where they are few.

        The fused kernel's backward pass under a mask took 40 % of a training step on a CPU;
        without it a step takes about three quarters of the time, and gives the same numbers up to
        rounding.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.explicit = self.config.context <= EXPLICIT_ATTENTION_CONTEXT

    def set_dropout(self, probability: float) -> None:
        """Change the dropout of embeddings, attention and residual branches."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(module, SelfAttention):
                module.dropout = probability

    def forward(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens_bt: token ids (batch, length).
            positions_bt: position of each token; counted on from the cache, or from 0, if None.
            mask_bts: True where a position (t) may attend to a column (s, cached ones first);
                causal if None.
            cache: filled with this call's keys and values, and read for earlier ones.

        Returns:
            (batch, length, width).
        """
        start = cache.length if cache is not None else 0
        length = tokens_bt.shape[1]
        if positions_bt is None:
            positions_bt = torch.arange(start, start + length, device=tokens_bt.device)[None]
        if mask_bts is None and start > 0 and length > 1:
            columns = torch.arange(start + length, device=tokens_bt.device)
            mask_bts = (columns[None] <= columns[start:, None])[None]
        x_btd = self.token_embedding(tokens_bt) + self.position_embedding(positions_bt)
        x_btd = self.dropout(x_btd)
        bias_dtype = compute_dtype(x_btd) if cache is None else cache.keys[0].dtype
        bias = attention_bias(mask_bts, bias_dtype)
        for layer, block in enumerate(self.blocks):
            if self.checkpoint_activations and cache is None and torch.is_grad_enabled():
                x_btd = checkpoint(block, x_btd, bias, use_reentrant=False)
            else:
                x_btd = block(x_btd, bias, cache, layer)
        if cache is not None:
            cache.length += length
        result: Tensor = self.final_norm(x_btd)
        return result

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Unembed with the transposed token embedding: (…, width) → (…, vocabulary)."""
        return F.linear(hidden_btd, self.token_embedding.weight)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type matrix products run in here: autocast's, or the tensor's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
