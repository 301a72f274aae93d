"""A decoder's weights made ready for reading only: cast once, laid out once, GELU fused."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.models.attention import KeyValueCache
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.feed_forward import FeedForward, gelu
from lmsmith.training.machine import ResolvedMachine


class InferenceDecoder:
    """A decoder that only writes.

    The linear layers and the unembedding multiply in ``dtype``; embeddings, norms and the
    residual stream stay float32. That is what autocast does in training, so that a policy writes
    with the rounding it is updated with. The weights are copied where ``dtype`` is not float32:
    make a new one after every update.
    """

    def __init__(self, decoder: Decoder, machine: ResolvedMachine | None = None) -> None:
        self.config: ModelConfig = decoder.config
        self.dtype = torch.float32 if machine is None else machine.dtype
        weights = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
        with torch.device("meta"):
            self._decoder = Decoder(decoder.config).eval()
        self._decoder.load_state_dict(weights, assign=True)
        self._decoder.unembedding = None
        self._unembedding = InferenceLinear(decoder.unembedding_weight, None, self.dtype)
        if self.dtype != torch.float32:
            _replace_linear_layers(self._decoder, self.dtype)

    def hidden(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor,
        mask_bts: Tensor | None,
        cache: KeyValueCache,
    ) -> Tensor:
        """Hidden states (batch, length, width); the cache takes the new columns in."""
        result: Tensor = self._decoder(tokens_bt, positions_bt, mask_bts, cache)
        return result

    def logits(self, hidden_bd: Tensor) -> Tensor:
        """float32 (batch, vocabulary)."""
        logits_bv: Tensor = self._unembedding(hidden_bd)
        return logits_bv.float()


class InferenceLinear(nn.Module):
    """x Wᵀ + b in the type of its weights, cast once; GELU (tanh form) after it if ``gelu``.

    In bf16 on x86 the weights are also laid out once as oneDNN's kernels read them, which
    otherwise happens in every call: 64 × 256 × 1,024 with GELU takes 75 µs of one thread instead
    of 195.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, gelu: bool = False
    ) -> None:
        super().__init__()
        self._dtype, self._gelu = dtype, gelu
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._weight = weight.detach().to(dtype)
        self._onednn = onednn_linear() if dtype == torch.bfloat16 else None
        if self._onednn is not None:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if self._onednn is not None:
            name, form = ("gelu", "tanh") if self._gelu else ("none", "")
            fused: Tensor = self._onednn(x, self._weight, self._bias, name, [], form)
            return fused
        result = F.linear(x, self._weight, self._bias)
        return F.gelu(result, approximate="tanh") if self._gelu else result


@functools.cache
def onednn_linear() -> Any:
    """PyTorch's operator for a linear layer with weights laid out beforehand, or None.

    It is the one that torch.compile's frozen graphs call, and has no public name.
    """
    if not (torch._C._has_mkldnn and torch.cpu._is_avx512_bf16_supported()):
        return None
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=torch.bfloat16))
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.zeros(1, 16, dtype=torch.bfloat16), weight, None, "gelu", [], "tanh")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return linear


class _InferenceFeedForward(nn.Module):
    """`FeedForward` with GELU, in its tanh form, in the inner layer's kernel."""

    def __init__(self, layer: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = InferenceLinear(layer.inner.weight, layer.inner.bias, dtype, gelu=True)
        self.output = InferenceLinear(layer.output.weight, layer.output.bias, dtype)

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.output(self.inner(x_btd))
        return result


def _replace_linear_layers(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, FeedForward) and child.activation is gelu:
            setattr(module, name, _InferenceFeedForward(child, dtype))
        elif isinstance(child, nn.Linear):
            setattr(module, name, InferenceLinear(child.weight, child.bias, dtype))
        else:
            _replace_linear_layers(child, dtype)
