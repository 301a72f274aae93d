"""The blocks that every transformer here is made of: feed-forward layers, norms, both orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.attention import Bias, CrossAttention, KeptKeys, KeysValues, SelfAttention
from lmsmith.models.config import ModelConfig
from lmsmith.models.dropout import Dropout
from lmsmith.models.positions import Rotation


def gelu(x: Tensor) -> Tensor:
    """GELU in GPT-2's form, ½x(1 + tanh(√(2/π)(x + 0.044715x³))).

    ½(1 + tanh u) = σ(2u): the compiler makes faster code of the sigmoid.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    wide = x.float()
    twice_u = 2.0 * math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (wide * torch.sigmoid(twice_u)).to(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""Name in `ModelConfig.activation` → function; ``swiglu`` is `GatedFeedForward`."""


class FeedForward(nn.Module):
    """W₂ f(W₁ x + b₁) + b₂."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.ffn_bias
        self.activation = ACTIVATIONS[config.activation]
        self.inner = nn.Linear(config.width, config.resolved_ffn_width, bias=bias)
        self.output = nn.Linear(config.resolved_ffn_width, config.width, bias=bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(self.activation(self.inner(x_btd)))
        return result


class GatedFeedForward(nn.Module):
    """SwiGLU: W₂ (silu(W_g x) ∘ W₁ x), (Shazeer 2020, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.ffn_bias
        self.gate = nn.Linear(config.width, config.resolved_ffn_width, bias=bias)
        self.inner = nn.Linear(config.width, config.resolved_ffn_width, bias=bias)
        self.output = nn.Linear(config.resolved_ffn_width, config.width, bias=bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(F.silu(self.gate(x_btd)) * self.inner(x_btd))
        return result


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(config, config.window_of(layer))
        self.feed_forward_norm = make_norm(config)
        self.feed_forward: FeedForward | GatedFeedForward
        gated = config.activation == "swiglu"
        self.feed_forward = GatedFeedForward(config) if gated else FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_btd: Tensor, bias: Bias = None, rotation: Rotation | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x_btd), bias, rotation)
        x_btd = x_btd + self.dropout(attended)
        result: Tensor = x_btd + self.dropout(self.feed_forward(self.feed_forward_norm(x_btd)))
        return result


class PostNormBlock(Block):
    """Post-norm block: norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def forward(self, x_btd: Tensor, bias: Bias = None, rotation: Rotation | None = None) -> Tensor:
        attended = self.attention(x_btd, bias, rotation)
        x_btd = self.attention_norm(x_btd + self.dropout(attended))
        result: Tensor = self.feed_forward_norm(x_btd + self.dropout(self.feed_forward(x_btd)))
        return result


class CrossBlock(Block):
    """Pre-norm block that attends to another text too, between its own text and the feed-forward
    layer (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cross_norm = make_norm(config)
        self.cross_attention = CrossAttention(config)

    def forward(  # type: ignore[override]
        self,
        x_btd: Tensor,
        memory: KeysValues,
        memory_bias: Tensor | None,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """(batch, t, width) → the same; ``memory`` is as in `CrossAttention`, ``kept`` as in
        `SelfAttention`."""
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), kept=kept))
        crossed = self.cross_attention(self.cross_norm(x_btd), memory, memory_bias)
        x_btd = x_btd + self.dropout(crossed)
        result: Tensor = x_btd + self.dropout(self.feed_forward(self.feed_forward_norm(x_btd)))
        return result

    def weights(self, x_btd: Tensor, memory: KeysValues) -> Tensor:
        """The cross-attention's weights (batch, heads, t, s) for the block's input."""
        x_btd = x_btd + self.attention(self.attention_norm(x_btd))
        return self.cross_attention.weights(self.cross_norm(x_btd), memory)


class PostNormCrossBlock(CrossBlock):
    """The same with norm(x + f(x))."""

    def forward(  # type: ignore[override]
        self,
        x_btd: Tensor,
        memory: KeysValues,
        memory_bias: Tensor | None,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        x_btd = self.attention_norm(x_btd + self.dropout(self.attention(x_btd, kept=kept)))
        crossed = self.cross_attention(x_btd, memory, memory_bias)
        x_btd = self.cross_norm(x_btd + self.dropout(crossed))
        result: Tensor = self.feed_forward_norm(x_btd + self.dropout(self.feed_forward(x_btd)))
        return result

    def weights(self, x_btd: Tensor, memory: KeysValues) -> Tensor:
        x_btd = self.attention_norm(x_btd + self.attention(x_btd))
        return self.cross_attention.weights(x_btd, memory)


BLOCKS = {"pre": Block, "post": PostNormBlock}
CROSS_BLOCKS = {"pre": CrossBlock, "post": PostNormCrossBlock}


class LayerNorm(nn.LayerNorm):
    """PyTorch's, in the wider type of its input and its weights (a gathered block's are bf16)."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        scale, shift = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(input, self.normalized_shape, scale, shift, self.eps)


class RMSNorm(nn.RMSNorm):
    """PyTorch's, in the wider type of its input and its weights (a gathered block's are bf16)."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(dtype), self.eps)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """LayerNorm with scale and shift, or RMSNorm with a scale."""
    norm: nn.LayerNorm | nn.RMSNorm = NORMS[config.norm](config.width, eps=config.norm_epsilon)
    return norm


def embed_tokens(
    embedding: nn.Embedding, tokens_bt: Tensor, controls_kd: Tensor | None = None
) -> Tensor:
    """(…) → (…, width); k more tokens, whose ids follow the vocabulary, have their own table."""
    if controls_kd is None:
        known: Tensor = embedding(tokens_bt)
        return known
    first = embedding.num_embeddings
    is_control_bt1 = (tokens_bt >= first)[..., None]
    known = embedding(tokens_bt.clamp(max=first - 1))
    controls = F.embedding((tokens_bt - first).clamp(min=0), controls_kd)
    return torch.where(is_control_bt1, controls, known)
