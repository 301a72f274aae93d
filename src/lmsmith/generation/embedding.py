"""Texts as vectors: an encoder's states, pooled and normalised (Reimers and Gurevych 2019)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lmsmith.catalogue.encoders import ReadEncoder
from lmsmith.device import HOST, device_of
from lmsmith.generation.inference import kernels_for
from lmsmith.generation.weights import BlockWeights
from lmsmith.models.batching import length_batches
from lmsmith.models.blocks import ACTIVATIONS, Block, PostNormBlock
from lmsmith.models.encoder import Encoder
from lmsmith.models.positions import Rotation
from lmsmith.tokenizers.word_piece import Frame

Vectors = NDArray[np.float32]

BATCH_TOKENS = 4096
"""Tokens of the rows that are computed together, padding included."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts.

    Attributes:
        vectors: (texts, width), each of length 1.
        tokens: read of each text, with its frame.
        cut: indices of texts that were longer than the model reads.
    """

    vectors: Vectors
    tokens: list[int]
    cut: list[int]

    @classmethod
    def joined(cls, parts: Sequence[Embedded]) -> Embedded:
        """The texts of all parts, one part after the other."""
        starts = np.cumsum([0, *(len(each.tokens) for each in parts)]).tolist()
        return cls(
            np.concatenate([each.vectors for each in parts]),
            [count for each in parts for count in each.tokens],
            [start + i for start, each in zip(starts, parts, strict=False) for i in each.cut],
        )


class Embedder:
    """Turns texts into vectors of length 1, whose products are cosines.

    Args:
        read: the model.
        dtype: of products. bf16 is about twice as fast, and changes a vector's numbers by 1e-3.
    """

    def __init__(self, read: ReadEncoder, dtype: torch.dtype = torch.float32) -> None:
        self.read, self.tokenizer = read, read.tokenizer
        self.frame = Frame.of(read.tokenizer)
        self._forward = EncoderForward(read.encoder, dtype)
        self.context = read.encoder.config.context

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.read.encoder.config.width

    @property
    def most_tokens(self) -> int:
        """Tokens of a text that are read, its frame included."""
        return min(self.read.pooling.most_tokens or self.context, self.context)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as tokens in its frame, however long."""
        frame = self.frame
        encoded = self.tokenizer.encode_batch(texts)
        return [[frame.cls, *tokens, frame.sep] for tokens in encoded]

    def embed(self, texts: Sequence[str]) -> Embedded:
        """The vectors of texts. Longer ones than `most_tokens` lose their end."""
        return self.embed_tokens(self.tokens(texts))

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Embedded:
        """`embed` for texts as `tokens` gives them."""
        most = self.most_tokens
        cut = [number for number, each in enumerate(sequences) if len(each) > most]
        kept = [
            [*each[: most - 1], self.frame.sep] if len(each) > most else list(each)
            for each in sequences
        ]
        lengths = [len(each) for each in kept]
        vectors = np.empty((len(kept), self.width), np.float32)
        for group in length_batches(lengths, BATCH_TOKENS):
            vectors[group] = self._vectors([kept[number] for number in group]).to(HOST).numpy()
        return Embedded(vectors, lengths, cut)

    @torch.inference_mode()
    def _vectors(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(rows, width) of sequences that are computed together."""
        parts = torch.split(self._forward(sequences), [len(each) for each in sequences])
        mean = self.read.pooling.mean
        pooled = torch.stack([part.mean(dim=0) if mean else part[0] for part in parts])
        return F.normalize(pooled, dim=-1)


class EncoderForward:
    """The encoder of inference: the tokens of all rows lie in one list, and none is padding.

    Linear layers multiply all tokens at once; attention takes rows of one length together.

    Args:
        encoder: is not changed, and keeps embeddings and norms.
        dtype: of products; norms and the sums of branches stay float32.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32) -> None:
        self._encoder, self._dtype = encoder.eval(), dtype
        self._kernels = kernels_for(device_of(encoder))
        self._activation = ACTIVATIONS.get(encoder.config.activation)
        prepare = self._kernels.prepare
        self._weights = [
            BlockWeights(block, dtype, "model", prepare, {})
            for block in encoder.blocks
            if isinstance(block, Block)
        ]

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (n, width) of all tokens, sequence after sequence; float32."""
        encoder = self._encoder
        lengths = [len(each) for each in sequences]
        device = device_of(encoder)
        tokens_n = torch.tensor([token for each in sequences for token in each], device=device)
        positions_n = torch.cat([_positions(length, device) for length in lengths])
        runs = [(len(list(same)), length) for length, same in groupby(lengths)]
        x_nd = encoder.embed(tokens_n, positions_n)
        rotations: list[Rotation | None] = [None] * len(runs)
        if encoder.rotary is not None:
            rotations = [encoder.rotary(_positions(length, device)[None]) for _, length in runs]
        for block, weights in zip(encoder.blocks, self._weights, strict=True):
            assert isinstance(block, Block)
            x_nd = self._block(block, weights, x_nd, runs, rotations)
        result: Tensor = encoder.final_norm(x_nd)
        return result

    def _block(
        self,
        block: Block,
        weights: BlockWeights,
        x_nd: Tensor,
        runs: Sequence[tuple[int, int]],
        rotations: Sequence[Rotation | None],
    ) -> Tensor:
        post, linear, dtype = isinstance(block, PostNormBlock), self._kernels.linear, self._dtype
        read_nd = x_nd if post else block.attention_norm(x_nd)
        projected = linear(read_nd.to(dtype), weights.query_key_value, dtype)
        parts = torch.split(projected, [rows * length for rows, length in runs])
        mixed = [
            block.attention.attend(part.view(*run, -1), rotation).flatten(0, 1)
            for part, run, rotation in zip(parts, runs, rotations, strict=True)
        ]
        joined = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        x_nd = linear(joined, weights.output, dtype, add_to=x_nd)
        if post:
            x_nd = block.attention_norm(x_nd)
        read_nd = x_nd if post else block.feed_forward_norm(x_nd)
        inner = linear(read_nd.to(dtype), weights.inner, dtype)
        inner = self._kernels.gate(inner) if self._activation is None else self._activation(inner)
        x_nd = linear(inner, weights.feed_forward_output, dtype, add_to=x_nd)
        return block.feed_forward_norm(x_nd) if post else x_nd


@functools.cache
def _positions(length: int, device: torch.device) -> Tensor:
    positions: Tensor = torch.arange(length, device=device)
    return positions
