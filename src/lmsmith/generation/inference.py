"""A decoder made ready for reading only: weights cast and laid out once, tokens of all rows packed.

Tokens that are read together stand in one list, (n, width), whatever rows they belong to and
however many each row has: a step of 16 rows is 16 tokens, a prompt of 500 is 500, and neither is
padded to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.generation.cache import PagedCache, pages_for
from lmsmith.generation.kernels import Kernels, Places, Weight, best_kernels
from lmsmith.generation.quantise import quantise_int8
from lmsmith.models.adapters import merged_state
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Block, Decoder
from lmsmith.models.empty import without_weights
from lmsmith.models.feed_forward import FeedForward, GatedFeedForward
from lmsmith.models.positions import Rotation
from lmsmith.training.machine import ResolvedMachine

WeightKind = Literal["model", "int8"]

Span = tuple[int, Sequence[int]]
"""A row of the cache, and the tokens that follow in it."""


class InferenceDecoder:
    """A decoder that only writes.

    The linear layers and the unembedding multiply in ``dtype``; embeddings, norms and the
    residual stream stay float32. That is what autocast does in training, so that a policy writes
    with the rounding it is updated with. The weights are copied where ``dtype`` is not float32:
    make a new one after every update.

    Args:
        decoder: its dropout is off here, whatever its mode.
        machine: gives ``dtype``; float32 if None.
        weights: ``model``, as they are in ``dtype``; or ``int8``, every matrix but the token
            embedding rounded to 8 bits in groups (`quantise_int8`), with products in bf16.
        kernels: the operations; the fastest there are if None.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: Decoder,
        machine: ResolvedMachine | None = None,
        *,
        weights: WeightKind = "model",
        kernels: Kernels | None = None,
    ) -> None:
        self.config: ModelConfig = decoder.config
        self.dtype = torch.float32 if machine is None else machine.dtype
        if weights == "int8":
            self.dtype = torch.bfloat16
        self.kernels = best_kernels() if kernels is None else kernels
        self._decoder = decoder_for_reading(decoder)
        self._blocks = []
        for block in self._decoder.blocks:
            assert isinstance(block, Block)
            self._blocks.append(_Block(block, self.dtype, weights))
        self._unembedding = _weight([decoder.unembedding_weight], [None], self.dtype, weights)
        self._pre_norm = self.config.norm_position == "pre"

    @property
    def weight_bytes(self) -> int:
        """What one step reads of weights."""
        matrices = [matrix for block in self._blocks for matrix in block.matrices]
        return sum(matrix.bytes for matrix in [*matrices, self._unembedding])

    def new_cache(self, rows: int, tokens: int) -> PagedCache:
        """A cache for so many rows of so many tokens each."""
        return PagedCache(self.config, rows, rows * pages_for(tokens), self.dtype)

    @torch.inference_mode()
    def read(self, spans: Sequence[Span], cache: PagedCache) -> Tensor:
        """Read the tokens that follow in each row; the cache takes them in.

        Returns:
            Hidden states (n, width) of all tokens, span after span.
        """
        places = _extend(cache, spans)
        tokens_n = torch.tensor([token for _, tokens in spans for token in tokens])
        positions_n = places.positions_n.long()
        x_nd = self._decoder._embed(tokens_n, positions_n)
        rotation = self._rotation(positions_n, places)
        for layer, block in enumerate(self._blocks):
            x_nd = self._block(x_nd, block, layer, places, cache, rotation)
        result: Tensor = self._decoder.final_norm(x_nd)
        return result

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """float32 (n, vocabulary); the C++ kernels do not round them to ``dtype`` first."""
        return self.kernels.linear(hidden_nd.to(self.dtype), self._unembedding, torch.float32)

    def _rotation(self, positions_n: Tensor, places: Places) -> Rotation | None:
        """Cosines and sines (n, head_width / 2), each row's on its own: some depend on length."""
        rotary = self._decoder.rotary
        if rotary is None:
            return None
        if rotary.scaling.method != "dynamic":
            cosine, sine = rotary(positions_n[None])
            return cosine[0, 0].contiguous(), sine[0, 0].contiguous()
        counts = [count for _, _, count in places.spans]
        parts = [rotary(part_n[None]) for part_n in torch.split(positions_n, counts)]
        cosines, sines = zip(*parts, strict=True)
        return torch.cat(cosines, dim=2)[0, 0], torch.cat(sines, dim=2)[0, 0]

    def _block(
        self,
        x_nd: Tensor,
        block: _Block,
        layer: int,
        places: Places,
        cache: PagedCache,
        rotation: Rotation | None,
    ) -> Tensor:
        """One block; pre-norm adds to ``x_nd`` in place."""
        kernels, dtype = self.kernels, self.dtype
        entering = block.attention_norm(x_nd, kernels, dtype) if self._pre_norm else x_nd.to(dtype)
        projected = kernels.linear(entering, block.query_key_value, dtype)
        projected_nhk = projected.view(len(projected), -1, self.config.width_per_head)
        mixed = kernels.attend(
            projected_nhk, places, cache.layers[layer], self.config.heads, rotation
        )
        x_nd = kernels.linear(mixed, block.output, dtype, add_to=x_nd)
        if not self._pre_norm:
            x_nd = block.attention_norm(x_nd, kernels, torch.float32)
            return block.feed_forward_norm(
                self._feed_forward(x_nd.to(dtype), block, x_nd), kernels, torch.float32
            )
        return self._feed_forward(block.feed_forward_norm(x_nd, kernels, dtype), block, x_nd)

    def _feed_forward(self, entering: Tensor, block: _Block, x_nd: Tensor) -> Tensor:
        kernels = self.kernels
        inner = kernels.linear(entering, block.inner, self.dtype)
        active = kernels.gate(inner) if block.gated else block.activation(inner)
        return kernels.linear(active, block.feed_forward_output, self.dtype, add_to=x_nd)


class _Norm:
    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        self._weight = norm.weight
        self._shift = norm.bias if isinstance(norm, nn.LayerNorm) else None
        assert norm.eps is not None
        self._epsilon = norm.eps

    def __call__(self, x_nd: Tensor, kernels: Kernels, dtype: torch.dtype) -> Tensor:
        return kernels.norm(x_nd, self._weight, self._shift, self._epsilon, dtype)


class _Block:
    """The weights of a block; gate and inner layer are one matrix."""

    def __init__(self, block: Block, dtype: torch.dtype, kind: WeightKind) -> None:
        attention, layer = block.attention, block.feed_forward
        assert isinstance(layer, FeedForward | GatedFeedForward)
        self.attention_norm = _Norm(block.attention_norm)
        self.feed_forward_norm = _Norm(block.feed_forward_norm)
        self.gated = isinstance(layer, GatedFeedForward)
        self.activation = F.silu if isinstance(layer, GatedFeedForward) else layer.activation
        inner = [layer.gate, layer.inner] if isinstance(layer, GatedFeedForward) else [layer.inner]

        def ready(*layers: nn.Linear) -> Weight:
            return _weight([x.weight for x in layers], [x.bias for x in layers], dtype, kind)

        self.query_key_value = ready(attention.query_key_value)
        self.output = ready(attention.output)
        self.inner = ready(*inner)
        self.feed_forward_output = ready(layer.output)

    @property
    def matrices(self) -> list[Weight]:
        return [self.query_key_value, self.output, self.inner, self.feed_forward_output]


def _weight(
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    dtype: torch.dtype,
    kind: WeightKind,
) -> Weight:
    """Matrices one under the other, in the form that they are read in."""
    bias_parts = [bias.detach().float() for bias in biases if bias is not None]
    bias = torch.cat(bias_parts).contiguous() if bias_parts else None
    if kind == "int8":
        values, scales = quantise_int8(torch.cat([matrix.detach() for matrix in matrices]))
        return Weight(values, scales, bias)
    parts = [matrix.detach().to(dtype) for matrix in matrices]
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    return Weight(values.contiguous(), None, bias)


def decoder_for_reading(decoder: Decoder) -> Decoder:
    """The same weights in a decoder of its own, so that dropout is off in one alone."""
    with without_weights():
        copy = Decoder(decoder.config).eval()
    copy.load_state_dict(merged_state(decoder), assign=True)
    return copy


def _extend(cache: PagedCache, spans: Sequence[Span]) -> Places:
    """Make room in the cache; say where every token stands."""
    rows: list[int] = []
    positions: list[int] = []
    found: list[tuple[int, int, int]] = []
    for row, tokens in spans:
        start, count = cache.lengths[row], len(tokens)
        cache.extend(row, count)
        rows += [row] * count
        positions += range(start, start + count)
        found.append((row, start, count))
    return Places(
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(positions, dtype=torch.int32),
        tuple(found),
    )
