"""Embeddings and blocks: what decoders and encoders are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmsmith.device import compute_dtype, device_of, is_host
from lmsmith.models.attention import Bias, SelfAttention, attention_bias
from lmsmith.models.attention_kernels import band_biases
from lmsmith.models.blocks import (
    BLOCKS,
    Block,
    PostNormBlock,
    embed_tokens,
    make_norm,
)
from lmsmith.models.compiled_code import remove_unfinished_libraries
from lmsmith.models.config import ModelConfig
from lmsmith.models.dropout import Dropout
from lmsmith.models.positions import RotaryPositions, Rotation, SinusoidalPositions


class Stack(nn.Module):
    """Token, position and segment embeddings, and the blocks over them.

    A subclass says what follows the last block (`finish`) and adds its own parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding: nn.Module = nn.Identity()  # rotary positions add nothing
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        elif config.positions == "sinusoidal":
            self.position_embedding = SinusoidalPositions(config.width)
        self.segment_embedding: nn.Embedding | None = None
        if config.segments:
            self.segment_embedding = nn.Embedding(config.segments, config.width)
        self.embedding_norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        block = BLOCKS[config.norm_position]
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.layers))
        self.final_norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.rotary = RotaryPositions(config) if config.positions == "rotary" else None
        self.embedding_scale = math.sqrt(config.width) if config.positions == "sinusoidal" else 1.0
        self.checkpoint_activations = False
        self.compiled = False

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); pre-norm residual projections scaled by 1/√(2 · layers); biases zero.

        GPT-2 scales the residual layers' weights by 1/√N, N their number: two in each block.
        GPT-1 and BERT, whose residual stream is normalised after every layer, do not.
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

        On a CPU a training step takes about three quarters of the fused kernel's time. On another
        device nothing changes.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.explicit = is_host(device_of(self))

    def compile_blocks(self, *, lengths_vary: bool = False) -> None:
        """Compile the blocks for training: for each shape, or once where lengths vary."""
        remove_unfinished_libraries()
        self.compiled = True
        if not lengths_vary:  # the explicit kernel is another one for every length
            self.attend_explicitly()
        for block in self.blocks:
            block.compile(dynamic=lengths_vary)

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
        segments_bt: Tensor | None = None,
        controls_kd: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, after the final norm if there is one.

        Args:
            tokens_bt: token ids (batch, length).
            positions_bt: position of each token; counted from 0 if None.
            mask_bts: True where a position (t) may attend to a column (s); t may be 1, for all. If
                None, what the config says: all before it (causal), or everything. Banded layers
                apply their window too.
            segments_bt: which of the sentences a token is of; the first if None. Models without
                segments read nothing of it.
            controls_kd: embeddings of k more tokens, whose ids follow the vocabulary.

        Returns:
            (batch, length, width).
        """
        entering = self._entering(tokens_bt, positions_bt, mask_bts, segments_bt, controls_kd)
        (x_btd,) = self._states(entering, (len(self.blocks),))
        result: Tensor = self.final_norm(x_btd)
        return result

    def states(
        self,
        after: Sequence[int],
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
    ) -> list[Tensor]:
        """The residual stream after so many blocks, for each of the rising numbers ``after``.

        No final norm is applied; the blocks after the last number are not computed. The rest is as
        in `forward`.
        """
        return self._states(self._entering(tokens_bt, positions_bt, mask_bts), after)

    def _states(
        self, entering: tuple[Tensor, dict[str, Bias], Rotation | None], after: Sequence[int]
    ) -> list[Tensor]:
        x_btd, biases, rotation = entering
        training = torch.is_grad_enabled()
        found = [x_btd] * after.count(0)
        for layer, block in enumerate(islice(self.blocks, after[-1])):
            bias = biases[self.config.attention_kind(layer)]
            if training and self.checkpoint_activations:
                x_btd = checkpoint(block, x_btd, bias, rotation, use_reentrant=False)
            elif training:
                x_btd = block(x_btd, bias, rotation)
            else:
                # Held-out texts have many lengths, each of which would be compiled. The block's
                # hooks run, in which a sharded one is gathered.
                x_btd = block._call_impl(x_btd, bias, rotation)  # type: ignore[no-untyped-call]
            found += [x_btd] * after.count(layer + 1)
        return found

    def _entering(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
        segments_bt: Tensor | None = None,
        controls_kd: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Bias], Rotation | None]:
        """The first block's input, and the attention's biases and rotation."""
        length, device = tokens_bt.shape[1], tokens_bt.device
        if positions_bt is None:
            positions_bt = torch.arange(length, device=device)[None]
        x_btd = self.embed(tokens_bt, positions_bt, segments_bt, controls_kd)
        dtype, kinds = compute_dtype(x_btd), self.config.attention_pattern
        biases: dict[str, Bias] = {}
        if "dense" in kinds:
            biases["dense"] = attention_bias(mask_bts, dtype)
        if "banded" in kinds:
            biases["banded"] = band_biases(length, self.config.window, mask_bts, dtype, device)
        return x_btd, biases, None if self.rotary is None else self.rotary(positions_bt)

    def embed(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor,
        segments_bt: Tensor | None = None,
        controls_kd: Tensor | None = None,
    ) -> Tensor:
        """Token, position and segment embeddings, added and normalised: (…) → (…, width)."""
        tokens_btd = embed_tokens(self.token_embedding, tokens_bt, controls_kd)
        if self.embedding_scale != 1.0:
            tokens_btd = tokens_btd * self.embedding_scale
        if self.config.positions != "rotary":
            tokens_btd = tokens_btd + self.position_embedding(positions_bt)
        if self.segment_embedding is not None:
            first = self.segment_embedding.weight[0]
            added = first if segments_bt is None else self.segment_embedding(segments_bt)
            tokens_btd = tokens_btd + added
        result: Tensor = self.dropout(self.embedding_norm(tokens_btd))
        return result

    @torch.no_grad()
    def attention_weights(self, tokens: Sequence[int], queries: int) -> list[Tensor]:
        """softmax(QKᵀ/√d_k + mask) of every layer, for the last ``queries`` of t tokens.

        Returns:
            One float32 tensor (heads, queries, t) a layer; rows sum to 1.
        """
        x_btd, biases, rotation = self._entering(
            torch.tensor([list(tokens)], device=device_of(self))
        )
        found = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            attending = x_btd if isinstance(block, PostNormBlock) else block.attention_norm(x_btd)
            found.append(block.attention.weights(attending, rotation, queries)[0])
            x_btd = block.forward(x_btd, biases[self.config.attention_kind(layer)], rotation)
        return found
