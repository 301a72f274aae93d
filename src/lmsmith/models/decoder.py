"""The decoder-only transformer: embedding, blocks, final norm and unembedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsmith.models.attention import Bias, SelfAttention, attention_bias
from lmsmith.models.attention_kernels import band_biases
from lmsmith.models.config import ModelConfig
from lmsmith.models.interop.quantised import PackedTensor
from lmsmith.models.positions import RotaryPositions, Rotation, SinusoidalPositions


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
        self.dropout = nn.Dropout(config.dropout)

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


BLOCKS = {"pre": Block, "post": PostNormBlock}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """LayerNorm with scale and shift, or RMSNorm with a scale."""
    norm: nn.LayerNorm | nn.RMSNorm = NORMS[config.norm](config.width, eps=config.norm_epsilon)
    return norm


class Decoder(nn.Module):
    """GPT-1, GPT-2 (Radford et al. 2019, section 2.3), GPT-3 or Llama, as its config says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding: nn.Module = nn.Identity()  # rotary positions add nothing
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        elif config.positions == "sinusoidal":
            self.position_embedding = SinusoidalPositions(config.width)
        self.dropout = nn.Dropout(config.dropout)
        block = BLOCKS[config.norm_position]
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.layers))
        self.final_norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.unembedding: nn.Linear | None = None
        if not config.tied_embeddings:
            self.unembedding = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
        self.embedding_scale = math.sqrt(config.width) if config.positions == "sinusoidal" else 1.0
        self.packed: dict[str, list[PackedTensor]] = {}
        """Matrices that stay as their file packs them, by name; the parameters of these names have
        no numbers (they are on the meta device). `InferenceDecoder` alone can multiply them."""
        self.checkpoint_activations = False
        self.compiled = False

    @property
    def unembedding_weight(self) -> Tensor:
        """(vocabulary, width); the token embedding's where they are tied."""
        return (self.unembedding or self.token_embedding).weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); pre-norm residual projections scaled by 1/√(2 · layers); biases zero.

        GPT-2 scales the residual layers' weights by 1/√N, N their number: two in each block.
        GPT-1, whose residual stream is normalised after every layer, does not.
        """
        scaled: tuple[str, ...] = ("attention.output", "feed_forward.output")
        if self.config.norm_position == "post":
            scaled = ()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                divisor = math.sqrt(2 * self.config.layers) if name.endswith(scaled) else 1.0
                module.weight.normal_(0.0, 0.02 / divisor, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)

    def attend_explicitly(self) -> None:
        """Hold all attention scores at once where rows are short (`attention.EXPLICIT_LENGTH`).

        On a CPU a training step takes about three quarters of the fused kernel's time.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.explicit = True

    def compile_blocks(self) -> None:
        """Compile the blocks for training."""
        self.compiled = True
        self.attend_explicitly()
        for block in self.blocks:
            block.compile(dynamic=False)

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
    ) -> Tensor:
        """Hidden states, after the final norm if there is one.

        Args:
            tokens_bt: token ids (batch, length).
            positions_bt: position of each token; counted from 0 if None.
            mask_bts: True where a position (t) may attend to a column (s); causal if None. Banded
                layers apply their window too.

        Returns:
            (batch, length, width).
        """
        x_btd, biases, rotation = self._entering(tokens_bt, positions_bt, mask_bts)
        training = torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            bias = biases[self.config.attention_kind(layer)]
            if training and self.checkpoint_activations:
                x_btd = checkpoint(block, x_btd, bias, rotation, use_reentrant=False)
            elif training:
                x_btd = block(x_btd, bias, rotation)
            else:
                # Held-out texts have many lengths, each of which would be compiled.
                x_btd = block.forward(x_btd, bias, rotation)
        result: Tensor = self.final_norm(x_btd)
        return result

    def _entering(
        self, tokens_bt: Tensor, positions_bt: Tensor | None, mask_bts: Tensor | None
    ) -> tuple[Tensor, dict[str, Bias], Rotation | None]:
        """The first block's input, and the attention's biases and rotation."""
        length, device = tokens_bt.shape[1], tokens_bt.device
        if positions_bt is None:
            positions_bt = torch.arange(length, device=device)[None]
        x_btd = self.embed(tokens_bt, positions_bt)
        dtype, kinds = compute_dtype(x_btd), self.config.attention_pattern
        biases: dict[str, Bias] = {}
        if "dense" in kinds:
            biases["dense"] = attention_bias(mask_bts, dtype)
        if "banded" in kinds:
            biases["banded"] = band_biases(length, self.config.window, mask_bts, dtype, device)
        return x_btd, biases, None if self.rotary is None else self.rotary(positions_bt)

    def embed(self, tokens_bt: Tensor, positions_bt: Tensor) -> Tensor:
        """Token and position embeddings, added: (…) → (…, width)."""
        tokens_btd = self.token_embedding(tokens_bt)
        if self.embedding_scale != 1.0:
            tokens_btd = tokens_btd * self.embedding_scale
        if self.config.positions != "rotary":
            tokens_btd = tokens_btd + self.position_embedding(positions_bt)
        result: Tensor = self.dropout(tokens_btd)
        return result

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Unembed: (…, width) → (…, vocabulary)."""
        return F.linear(hidden_btd, self.unembedding_weight)

    @torch.no_grad()
    def attention_weights(self, tokens: Sequence[int], queries: int) -> list[Tensor]:
        """softmax(QKᵀ/√d_k + mask) of every layer, for the last ``queries`` of t tokens.

        Returns:
            One float32 tensor (heads, queries, t) a layer; rows sum to 1.
        """
        x_btd, biases, rotation = self._entering(torch.tensor([list(tokens)]), None, None)
        found = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            attending = x_btd if isinstance(block, PostNormBlock) else block.attention_norm(x_btd)
            found.append(block.attention.weights(attending, rotation, queries)[0])
            x_btd = block.forward(x_btd, biases[self.config.attention_kind(layer)], rotation)
        return found


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products: autocast's, or the tensor's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
