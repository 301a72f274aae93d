"""The feed-forward layer of a block: two matrices with an activation between, or a gate as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.config import ModelConfig


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


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu,
    "gelu": F.gelu,
    "relu": F.relu,
}
"""Name in `ModelConfig.activation` → function; ``swiglu`` is `GatedFeedForward`."""


class FeedForward(nn.Module):
    """W₂ f(W₁ x + b₁) + b₂, with GELU in its tanh form for GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.feed_forward_bias
        self.activation = ACTIVATIONS[config.activation]
        self.inner = nn.Linear(config.width, config.inner_width, bias=bias)
        self.output = nn.Linear(config.inner_width, config.width, bias=bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(self.activation(self.inner(x_btd)))
        return result


class GatedFeedForward(nn.Module):
    """SwiGLU: W₂ (silu(W_g x) ∘ W₁ x), (Shazeer 2020, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.feed_forward_bias
        self.gate = nn.Linear(config.width, config.inner_width, bias=bias)
        self.inner = nn.Linear(config.width, config.inner_width, bias=bias)
        self.output = nn.Linear(config.inner_width, config.width, bias=bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(F.silu(self.gate(x_btd)) * self.inner(x_btd))
        return result


def make_feed_forward(config: ModelConfig) -> FeedForward | GatedFeedForward:
    """The layer that the configuration names."""
    return GatedFeedForward(config) if config.activation == "swiglu" else FeedForward(config)
