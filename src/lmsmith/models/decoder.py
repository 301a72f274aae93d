"""The decoder-only transformer: embed, a stack of blocks, perhaps a final norm, unembedding.

Which parts it is made of is decided once, in the constructors, by `ModelConfig`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsmith.models.attention import Bias, KeyValueCache, SelfAttention, attention_bias
from lmsmith.models.banded import band_biases
from lmsmith.models.config import ModelConfig
from lmsmith.models.feed_forward import FeedForward, gelu, make_feed_forward
from lmsmith.models.positions import NoPositions, RotaryPositions, Rotation, SinusoidalPositions

__all__ = ["Block", "Decoder", "FeedForward", "PostNormBlock", "compute_dtype", "gelu"]


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(config, config.window_of(layer))
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_btd: Tensor,
        bias: Bias = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        rotation: Rotation | None = None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_btd), bias, cache, layer, rotation)
        x_btd = x_btd + self.dropout(attended)
        result: Tensor = x_btd + self.dropout(self.feed_forward(self.feed_forward_norm(x_btd)))
        return result


class PostNormBlock(Block):
    """Post-norm block: norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def forward(
        self,
        x_btd: Tensor,
        bias: Bias = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        rotation: Rotation | None = None,
    ) -> Tensor:
        attended = self.attention(x_btd, bias, cache, layer, rotation)
        x_btd = self.attention_norm(x_btd + self.dropout(attended))
        result: Tensor = self.feed_forward_norm(x_btd + self.dropout(self.feed_forward(x_btd)))
        return result


BLOCKS = {"pre": Block, "post": PostNormBlock}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """LayerNorm with scale and shift, or RMSNorm with a scale."""
    norm: nn.LayerNorm | nn.RMSNorm = NORMS[config.norm](config.width, eps=config.norm_epsilon)
    return norm


def make_position_embedding(config: ModelConfig) -> nn.Module:
    """What is added to the token embeddings, given the positions."""
    if config.positions == "learned":
        return nn.Embedding(config.context, config.width)
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.width)
    return NoPositions()


class Decoder(nn.Module):
    """GPT-1, GPT-2 (Radford et al. 2019, section 2.3), GPT-3 or Llama, as its config says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = make_position_embedding(config)
        self.dropout = nn.Dropout(config.dropout)
        block = BLOCKS[config.norm_position]
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.layers))
        self.final_norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.unembedding: nn.Linear | None = None
        if not config.tied_embeddings:
            self.unembedding = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
        self.embedding_scale = math.sqrt(config.width) if config.positions == "sinusoidal" else 1.0
        self.checkpoint_activations = False
        self.compiled = False

    @property
    def unembedding_weight(self) -> Tensor:
        """(vocabulary, width): the token embedding's, or its own where they are not tied."""
        return (self.unembedding or self.token_embedding).weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); pre-norm residual projections scaled by 1/√(2 · layers); biases zero.

        GPT-2 scales the residual layers' weights by 1/√N, N their number: two in each block.
        GPT-1, whose residual stream is normalised after every layer, does not.
        """
        pre_norm = self.config.norm_position == "pre"
        residual_scale = 0.02 / math.sqrt(2 * self.config.layers) if pre_norm else 0.02
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("attention.output", "feed_forward.output"))
                module.weight.normal_(
                    0.0, residual_scale if residual else 0.02, generator=generator
                )
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)

    def attend_explicitly(self) -> None:
        """Hold all attention scores at once where rows are short (`attention.EXPLICIT_LENGTH`).

        The fused kernel's backward pass took 40 % of a training step on a CPU; without it a step
        takes about three quarters of the time, and gives the same numbers up to rounding.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.explicit = True

    def compile_blocks(self) -> None:
        """Compile the blocks for training; blocks of one kind share the result."""
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
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states, after the final norm if there is one.

        Args:
            tokens_bt: token ids (batch, length).
            positions_bt: position of each token; counted on from the cache, or from 0, if None.
            mask_bts: True where a position (t) may attend to a column (s, cached ones first);
                causal if None. Banded layers see what it allows within their window of columns.
            cache: filled with this call's keys and values, and read for earlier ones.

        Returns:
            (batch, length, width).
        """
        start = cache.length if cache is not None else 0
        length = tokens_bt.shape[1]
        if positions_bt is None:
            positions_bt = torch.arange(start, start + length, device=tokens_bt.device)[None]
        x_btd = self._embed(tokens_bt, positions_bt)
        bias_dtype = compute_dtype(x_btd) if cache is None else cache.keys[0].dtype
        biases = self._biases(mask_bts, length, cache, bias_dtype, tokens_bt.device)
        rotation = None if self.rotary is None else self.rotary(positions_bt)
        training = torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            bias = biases[self.config.attention_kind(layer)]
            if training and self.checkpoint_activations and cache is None:
                x_btd = checkpoint(block, x_btd, bias, None, 0, rotation, use_reentrant=False)
            elif training:
                x_btd = block(x_btd, bias, cache, layer, rotation)
            else:
                # Looks at held-out text come in many lengths, each of which would be compiled.
                x_btd = block.forward(x_btd, bias, cache, layer, rotation)
        if cache is not None:
            cache.length += length
        result: Tensor = self.final_norm(x_btd)
        return result

    def _embed(self, tokens_bt: Tensor, positions_bt: Tensor) -> Tensor:
        tokens_btd = self.token_embedding(tokens_bt)
        if self.embedding_scale != 1.0:
            tokens_btd = tokens_btd * self.embedding_scale
        result: Tensor = self.dropout(tokens_btd + self.position_embedding(positions_bt))
        return result

    def _biases(
        self,
        mask_bts: Tensor | None,
        length: int,
        cache: KeyValueCache | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> dict[str, Bias]:
        """What each kind of attention adds to its scores, made once for all its layers."""
        biases: dict[str, Bias] = {}
        start, window = (cache.length if cache is not None else 0), self.config.window
        kinds = set(self.config.attention_pattern)
        if "dense" in kinds:
            dense = mask_bts
            if mask_bts is None and start > 0 and length > 1:
                columns = torch.arange(start + length, device=device)
                dense = (columns[None] <= columns[start:, None])[None]
            biases["dense"] = attention_bias(dense, dtype)
        if "banded" in kinds:
            within, keys = mask_bts, length
            if cache is not None:
                columns = cache.columns(window, length)
                within = mask_bts[:, :, columns.to(device)] if mask_bts is not None else None
                keys = len(columns)
            if length == 1:  # all that the cache gives is in the window
                biases["banded"] = attention_bias(within, dtype)
            else:
                biases["banded"] = band_biases(length, keys, window, within, dtype, device)
        return biases

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Unembed: (…, width) → (…, vocabulary)."""
        return F.linear(hidden_btd, self.unembedding_weight)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type matrix products run in here: autocast's, or the tensor's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
