"""The Transformer: an encoder reads one text, a decoder writes another (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.device import device_of
from lmsmith.models.attention import (
    Attention,
    KeptKeys,
    KeysValues,
    attention_bias,
    padding_mask,
)
from lmsmith.models.blocks import CROSS_BLOCKS, CrossBlock, make_norm
from lmsmith.models.config import EncoderDecoderConfig
from lmsmith.models.encoder import Encoder


@dataclass(frozen=True)
class Memory:
    """What the decoder sees of the source: each layer's keys and values, and where it ends."""

    layers: Sequence[KeysValues]
    bias: Tensor | None

    def select(self, rows_b: Tensor) -> Memory:
        """These sources, in this order."""
        layers = [(key[rows_b], value[rows_b]) for key, value in self.layers]
        return Memory(layers, None if self.bias is None else self.bias[rows_b])


class EncoderDecoder(nn.Module):
    """The Transformer of section 3, or Marian's, as its config says.

    Dropout is on the embeddings and each residual branch (section 5.4), and not on attention
    weights.
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        model = config.model
        self.encoder = Encoder(replace(model, causal=False))
        self.decoder_blocks = nn.ModuleList(
            CROSS_BLOCKS[model.norm_position](model) for _ in range(config.resolved_decoder_layers)
        )
        self.decoder_norm = make_norm(model) if model.has_final_norm else nn.Identity()
        self.output_bias: nn.Parameter | None = None
        if config.output_bias:
            self.output_bias = nn.Parameter(torch.zeros(model.vocabulary_size))
        self.set_dropout(model.dropout)

    @property
    def unembedding_weight(self) -> Tensor:
        """(vocabulary, width); the embedding of source and target."""
        return self.encoder.token_embedding.weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Xavier's uniform for matrices, normal(0, 1/√width) for embeddings, biases zero.

        Times √width (section 3.4), embeddings then have the size of the positions added to them.
        """
        parts = {"query_key_value": 3, "key_value": 2}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                rows = module.out_features / parts.get(name.rsplit(".", 1)[-1], 1)
                bound = math.sqrt(6.0 / (module.in_features + rows))
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, self.config.width**-0.5, generator=generator)

    def set_dropout(self, probability: float) -> None:
        """Change the dropout of embeddings and residual branches."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(module, Attention):
                module.dropout = 0.0

    def encode(self, source_bs: Tensor, lengths_b: Tensor | None = None) -> Memory:
        """Read sources.

        Args:
            source_bs: token ids (batch, s), each with its end token, padded on the right by any.
            lengths_b: tokens of each that are no padding; all if None.
        """
        mask = None if lengths_b is None else padding_mask(lengths_b, source_bs.shape[1])
        hidden_bsd = self.encoder(source_bs, mask_bts=mask)
        bias = attention_bias(mask, hidden_bsd.dtype)
        layers = [block.cross_attention.keys_values(hidden_bsd) for block in self._decoder()]
        return Memory(layers, bias)

    def forward(
        self, source_bs: Tensor, target_bt: Tensor, lengths_b: Tensor | None = None
    ) -> Tensor:
        """The decoder's last states, (batch, t, width).

        Args:
            source_bs, lengths_b: as in `encode`.
            target_bt: the start token and the target (`shift_right`), padded on the right by any:
                no position sees those after it.
        """
        return self.decode(target_bt, self.encode(source_bs, lengths_b))

    def decode(
        self, target_bt: Tensor, memory: Memory, kept: Sequence[KeptKeys] = (), position: int = 0
    ) -> Tensor:
        """The decoder's last states, (batch, t, width).

        Args:
            target_bt: token ids; with ``kept``, one a row.
            memory: of the sources, as many as rows.
            kept: each layer's keys and values of the tokens before, which are extended.
            position: of the first token.
        """
        length, device = target_bt.shape[1], target_bt.device
        positions_1t = torch.arange(position, position + length, device=device)[None]
        x_btd = self.encoder.embed(target_bt, positions_1t)
        for layer, block in enumerate(self._decoder()):
            x_btd = block(x_btd, memory.layers[layer], memory.bias, kept[layer] if kept else None)
        result: Tensor = self.decoder_norm(x_btd)
        return result

    def _decoder(self) -> list[CrossBlock]:
        return [block for block in self.decoder_blocks if isinstance(block, CrossBlock)]

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Unembed: (…, width) → (…, vocabulary)."""
        return F.linear(hidden_btd, self.unembedding_weight, self.output_bias)

    @torch.no_grad()
    def attention_weights(self, source: Sequence[int], target: Sequence[int]) -> list[Tensor]:
        """softmax(QKᵀ/√d_k) between two texts: a float32 (heads, t, s) for each decoder layer.

        Args:
            source: token ids with the end token.
            target: token ids; the row of each is the attention with which it was predicted.
        """
        device = device_of(self)
        source_1s = torch.tensor([list(source)], device=device)
        target_1t = torch.tensor([[self.config.start_token, *target[:-1]]], device=device)
        memory = self.encode(source_1s)
        positions_1t = torch.arange(target_1t.shape[1], device=device)[None]
        x_btd = self.encoder.embed(target_1t, positions_1t)
        found = []
        for layer, block in enumerate(self._decoder()):
            found.append(block.weights(x_btd, memory.layers[layer])[0])
            x_btd = block(x_btd, memory.layers[layer], None)
        return found


def shift_right(targets: Sequence[Sequence[int]], start_token: int) -> list[list[int]]:
    """The decoder's inputs for these outputs: the start token, and all but the last token."""
    return [[start_token, *target[:-1]] for target in targets]
