"""The decoder of inference: forward pass, logits, and the draw of the next tokens.

Weights are cast and laid out once. The tokens of a forward pass are packed into one list,
(n, width), whatever rows of the cache they belong to: 16 replies are 16 tokens, a prompt of 500 is
500, and neither is padded to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lmsmith.device import HOST, device_of, has_float64, is_host, moved
from lmsmith.generation.adapters import AdapterWeights, Group, group_spans
from lmsmith.generation.decode_graphs import graphs_for
from lmsmith.generation.device_kernels import DecodePlaces, DecodeStep, DeviceKernels
from lmsmith.generation.kernels import Places, TorchKernels
from lmsmith.generation.kv_cache import LayerCache, PagedCache, pages_for
from lmsmith.generation.native.operations import best_kernels
from lmsmith.generation.native.stack import native_stack
from lmsmith.generation.requests import RunningSequence
from lmsmith.generation.sampling import adjust
from lmsmith.generation.vocabulary import ANY, Mask
from lmsmith.generation.weights import (
    BlockWeights,
    Norm,
    Weight,
    WeightKind,
    read_norm,
    read_packed,
    read_weight,
)
from lmsmith.models.adapters import LowRank, merge, merged_state
from lmsmith.models.blocks import ACTIVATIONS, Block
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import without_weights
from lmsmith.models.interop.quantised import PackedTensor
from lmsmith.models.positions import Rotation
from lmsmith.training.machine import ResolvedMachine

Span = tuple[int, Sequence[int]]
"""A row of the cache, and the tokens that follow in it."""

Attend = Callable[[Tensor, LayerCache], Tensor]
"""Attention of a forward pass's tokens in a layer: `TorchKernels.attend` at their places."""


class InferenceDecoder:
    """A decoder for inference. Matrices that it has packed are multiplied as they are.

    The linear layers and the unembedding multiply in ``dtype``; embeddings, norms and the
    residual stream stay float32, as autocast does it in training: a policy writes with the
    rounding it is updated with. The weights are copied where ``dtype`` is not float32: make a new
    one after every update.

    Args:
        decoder: its dropout is off here, whatever its mode.
        machine: gives ``dtype`` and device; float32, where the decoder is, if None.
        weights: ``model``, as they are in ``dtype``; or ``int8``, every matrix but the token
            embedding rounded to 8 bits in groups (`quantise_int8`), for activations in bf16.
        kernels: the operations; the fastest available if None.
        adapters: low-rank changes of the weights by name; each span that is read has one or none.

    Attributes:
        graphs: of decode steps, where the device has them; None runs them operation by operation.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: Decoder,
        machine: ResolvedMachine | None = None,
        *,
        weights: WeightKind = "model",
        kernels: TorchKernels | None = None,
        adapters: Mapping[str, LowRank] | None = None,
    ) -> None:
        self.config: ModelConfig = decoder.config
        self.dtype = torch.float32 if machine is None else machine.dtype
        if weights == "int8" or decoder.packed:
            self.dtype = torch.bfloat16
        self.device = reading_device(decoder, machine)
        self.kernels = kernels_for(self.device) if kernels is None else kernels
        self._decoder = decoder_for_reading(decoder)
        if not is_host(self.device):
            self._decoder.to(self.device)
        self.blocks = []
        prepare, packed = self.kernels.prepare, decoder.packed
        for layer, block in enumerate(self._decoder.blocks):
            assert isinstance(block, Block)
            matrices = of_block(packed, layer)
            self.blocks.append(BlockWeights(block, self.dtype, weights, prepare, matrices))
        if packed:
            name = "token_embedding" if self.config.tied_embeddings else "unembedding"
            self.unembedding = prepare(read_packed(packed[f"{name}.weight"], None, self.dtype))
            table = packed["token_embedding.weight"][0]
            tied = self.unembedding if self.config.tied_embeddings else None
            self._decoder.token_embedding = PackedEmbedding(table, tied, self.kernels)  # type: ignore[assignment]
        else:
            parts = [self._decoder.unembedding_weight]
            self.unembedding = prepare(read_weight(parts, [None], self.dtype, weights))
        norm = self._decoder.final_norm
        self._final_norm = None if isinstance(norm, nn.Identity) else read_norm(norm)
        self._rotations: Rotation | None = None  # of the positions from 0 on
        self._stack = native_stack(self.kernels, self.blocks, self.config, self.dtype)
        self.graphs = graphs_for(self.device, self.config)
        self._low_rank = dict(adapters or {})
        heights = {name: len(weight) for name, weight in linear_weights(self._decoder)}
        self.adapters = {
            name: AdapterWeights(each, heights, len(self.blocks), self.dtype, prepare, self.device)
            for name, each in self._low_rank.items()
        }

    @property
    def decoder(self) -> Decoder:
        """The float32 weights that it was made of, adapters merged; for reading only.

        Packed matrices are unpacked at every call, and have the rounding of their products.
        """
        return unpacked(self) if self.packings else self._decoder

    def merged(self, adapter: str) -> Decoder:
        """`decoder` with an adapter merged into its weights; without a name, as it is."""
        if not adapter:
            return self.decoder
        with without_weights():
            copy = Decoder(self.config).eval()
        state = merge(self.decoder.state_dict(), self._low_rank[adapter])
        copy.load_state_dict(state, assign=True)
        return copy

    @property
    def packings(self) -> list[str]:
        """Names of the types of packed matrices, such as Q4_1."""
        return sorted({name for matrix in self.matrices for name in matrix.packings})

    @property
    def matrices(self) -> list[Weight]:
        """All that one step multiplies by."""
        return [*(each for block in self.blocks for each in block.matrices), self.unembedding]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads."""
        return sum(matrix.bytes for matrix in self.matrices)

    @property
    def held_bytes(self) -> int:
        """Bytes of all weights in memory, and of the graphs' results; the float32 weights stay, for
        embeddings and norms."""
        numbers = (each for each in self._decoder.parameters() if not each.is_meta)
        adapters = sum(each.bytes for each in self.adapters.values())
        graphs = 0 if self.graphs is None else self.graphs.held_bytes
        return self.weight_bytes + adapters + sum(each.nbytes for each in numbers) + graphs

    def new_cache(self, rows: int, tokens: int) -> PagedCache:
        """A cache for so many rows of so many tokens each."""
        pages = rows * pages_for(tokens)
        return PagedCache(self.config, rows, pages, self.dtype, device=self.device)

    @torch.inference_mode()
    def read(
        self, spans: Sequence[Span], cache: PagedCache, adapters: Sequence[str] = ()
    ) -> Tensor:
        """Hidden states (n, width) of all tokens, span after span; the cache grows by them.

        ``adapters`` has the name of each span's, empty for none; without it no span has one.
        """
        if not any(adapters):
            return self._read(spans, cache, ())
        found = [self.adapters[name] if name else None for name in adapters]
        counts = [len(tokens) for _, tokens in spans]
        order, groups = group_spans(found, counts)
        hidden_nd = self._read([spans[n] for n in order], cache, groups)
        if order == sorted(order):
            return hidden_nd
        parts = torch.split(hidden_nd, [counts[n] for n in order])
        by_span = dict(zip(order, parts, strict=True))
        return torch.cat([by_span[n] for n in range(len(spans))])

    def _read(self, spans: Sequence[Span], cache: PagedCache, groups: Sequence[Group]) -> Tensor:
        if isinstance(self.kernels, DeviceKernels) and all(len(span) == 1 for _, span in spans):
            return self._decode(DecodeStep(spans, cache), cache, groups)
        places = self._extend(cache, spans)
        tokens_n = torch.tensor([token for _, tokens in spans for token in tokens])
        read_n, positions_n = (
            moved(each, self.device) for each in (tokens_n, places.positions_n.long())
        )
        x_nd = self._decoder.embed(read_n, positions_n)
        if self._stack is not None and self._stack.takes(len(x_nd)):
            return self._finish(self._stack(x_nd, places, cache, groups))

        def attend(projected_nhk: Tensor, layer: LayerCache) -> Tensor:
            return self.kernels.attend(projected_nhk, places, layer, self.config.heads)

        return self._finish(self._blocks(x_nd, attend, cache, groups))

    def _decode(self, step: DecodeStep, cache: PagedCache, groups: Sequence[Group]) -> Tensor:
        """States of one token of each row on a device; steps with adapters have no graph."""
        if groups or self.graphs is None:
            numbers_nc = moved(step.numbers(len(step), step.pages), self.device)
            return self._step(cache, groups, numbers_nc, step.pages)
        return self.graphs.read(step, cache, partial(self._step, cache, ()))

    def _step(
        self, cache: PagedCache, groups: Sequence[Group], numbers_nc: Tensor, pages: int
    ) -> Tensor:
        """The operations of a decode step; they depend on the shape of the numbers alone."""
        kernels, heads = self.kernels, self.config.heads
        assert isinstance(kernels, DeviceKernels)
        places = DecodePlaces.of(numbers_nc, pages, cache)
        rotation = self._rotation(places.positions_n, [1] * len(numbers_nc), self.config.context)

        def attend(projected_nhk: Tensor, layer: LayerCache) -> Tensor:
            return kernels.attend_rows(projected_nhk, places, rotation, layer, heads)

        x_nd = self._decoder.embed(places.tokens_n, places.positions_n)
        return self._finish(self._blocks(x_nd, attend, cache, groups))

    def _finish(self, x_nd: Tensor) -> Tensor:
        if self._final_norm is None:
            return x_nd
        return self.kernels.norm(x_nd, self._final_norm, torch.float32)

    @torch.inference_mode()
    def logits(self, hidden_nd: Tensor) -> Tensor:
        """float32 (n, vocabulary); the C++ kernels do not round them to ``dtype`` first."""
        return self.kernels.linear(hidden_nd.to(self.dtype), self.unembedding, torch.float32)

    @torch.inference_mode()
    def scored_logits(self, hidden_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits in the type of the product (float32, or bf16 on matrix units), the log Σ exp of
        each row, and its first largest."""
        dtype = self.kernels.product_dtype(self.unembedding, len(hidden_nd))
        logits_nv = self.kernels.linear(hidden_nd.to(self.dtype), self.unembedding, dtype)
        return logits_nv, *self.kernels.log_sums(logits_nv)

    def draw(self, logits_bv: Tensor, sequences: Sequence[RunningSequence]) -> list[int]:
        """The next token of each sequence; those with equal settings are drawn together.

        Raises:
            UserError: logits are not finite numbers.
        """
        if not has_float64(logits_bv.device):
            logits_bv = logits_bv.to(HOST)
        groups: dict[tuple[float, int, float, float], list[int]] = {}
        for place, each in enumerate(sequences):
            by = each.settings
            key = (by.temperature, by.top_k, by.top_p, by.min_p)
            groups.setdefault(key, []).append(place)
        tokens = [0] * len(sequences)
        for places in groups.values():
            chosen = [sequences[place] for place in places]
            part_bv = logits_bv if len(groups) == 1 else logits_bv[places]
            if any(each.settings.logit_bias or each.settings.has_penalties for each in chosen):
                pairs = zip(part_bv, chosen, strict=True)
                part_bv = torch.stack([adjust(v, each.settings, each.history) for v, each in pairs])
            uniforms = [each.uniform for each in chosen]
            uniform_b = torch.tensor(uniforms, dtype=torch.float64, device=logits_bv.device)
            mask = mask_of(part_bv, chosen)
            drawn_b = self.kernels.draw(part_bv, chosen[0].settings, uniform_b, mask)
            for place, token in zip(places, drawn_b.tolist(), strict=True):
                tokens[place] = token
        return tokens

    def _extend(self, cache: PagedCache, spans: Sequence[Span]) -> Places:
        """Make room in the cache; the place of every token."""
        rows: list[int] = []
        positions: list[int] = []
        found: list[tuple[int, int, int]] = []
        for row, tokens in spans:
            start, count = cache.lengths[row], len(tokens)
            cache.extend(row, count)
            rows += [row] * count
            positions += range(start, start + count)
            found.append((row, start, count))
        positions_n = torch.tensor(positions, dtype=torch.int32)
        moved_n = moved(positions_n.long(), self.device)
        counts = [count for _, _, count in found]
        rotation = self._rotation(moved_n, counts, max(positions) + 1)
        return Places(torch.tensor(rows, dtype=torch.int32), positions_n, found, rotation)

    def _rotation(self, positions_n: Tensor, counts: list[int], end: int) -> Rotation | None:
        """Cosines and sines (n, head_width / 2) of positions before ``end``.

        They are computed row by row where they depend on its length, and else once, in a table:
        PyTorch computes even a few of them on threads of its own, which then spin for milliseconds
        on the processors of the kernels' threads.
        """
        rotary = self._decoder.rotary
        if rotary is None:
            return None
        if rotary.scaling.method == "dynamic":
            parts = torch.split(positions_n, counts)
            cosines, sines = zip(*[rotary(part_n[None]) for part_n in parts], strict=True)
            return torch.cat(cosines, dim=2)[0, 0], torch.cat(sines, dim=2)[0, 0]
        known = self._rotations
        if known is None or len(known[0]) < end:
            size = 1 << max(10, (end - 1).bit_length())
            cosine, sine = rotary(torch.arange(size, device=positions_n.device)[None])
            known = self._rotations = cosine[0, 0], sine[0, 0]
        return known[0][positions_n], known[1][positions_n]

    def _blocks(
        self, x_nd: Tensor, attend: Attend, cache: PagedCache, groups: Sequence[Group]
    ) -> Tensor:
        for layer, block in enumerate(self.blocks):
            products = Products(self.kernels, block, self.dtype, layer, groups)
            x_nd = self._block(x_nd, products, attend, cache.layers[layer])
        return x_nd

    def _block(self, x_nd: Tensor, products: Products, attend: Attend, cache: LayerCache) -> Tensor:
        """One block; pre-norm adds to ``x_nd`` in place."""
        dtype, pre_norm = self.dtype, self.config.norm_position == "pre"
        block = products.block
        entering = self._norm(x_nd, block.attention_norm) if pre_norm else x_nd.to(dtype)
        projected = products("query_key_value", entering)
        projected_nhk = projected.view(len(projected), -1, self.config.width_per_head)
        x_nd = products("output", attend(projected_nhk, cache), add_to=x_nd)
        if pre_norm:
            return self._feed_forward(self._norm(x_nd, block.feed_forward_norm), products, x_nd)
        x_nd = self._norm(x_nd, block.attention_norm, torch.float32)
        x_nd = self._feed_forward(x_nd.to(dtype), products, x_nd)
        return self._norm(x_nd, block.feed_forward_norm, torch.float32)

    def _norm(self, x_nd: Tensor, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
        dtype = self.dtype if dtype is None else dtype
        return self.kernels.norm(x_nd, norm, dtype)

    def _feed_forward(self, entering: Tensor, products: Products, x_nd: Tensor) -> Tensor:
        kernels, activation = self.kernels, self.config.activation
        inner = products("inner", entering)
        if activation == "swiglu":
            active = kernels.gate(inner)
        elif activation == "gelu_tanh":
            active = kernels.gelu(inner)
        else:
            active = ACTIVATIONS[activation](inner)
        return products("feed_forward_output", active, add_to=x_nd)


@dataclass(frozen=True)
class Products:
    """A block's matrix products, the adapters' on top of the base's."""

    kernels: TorchKernels
    block: BlockWeights
    dtype: torch.dtype
    layer: int
    groups: Sequence[Group]

    def __call__(self, name: str, x_ni: Tensor, add_to: Tensor | None = None) -> Tensor:
        """`TorchKernels.linear` with a matrix of `adapters.MATRICES`."""
        kernels, dtype = self.kernels, self.dtype
        result = kernels.linear(x_ni, getattr(self.block, name), dtype, add_to)
        for adapter, first, end in self.groups:
            pair = adapter.layers[self.layer].get(name)
            if pair is not None:
                low_nr = kernels.linear(x_ni[first:end], pair.down, dtype)
                if add_to is not None:
                    kernels.linear(low_nr, pair.up, dtype, add_to=result[first:end])
                else:
                    result[first:end] += kernels.linear(low_nr, pair.up, dtype)
        return result


def reading_device(decoder: Decoder, machine: ResolvedMachine | None) -> torch.device:
    """The machine's device, else where the decoder is; packed matrices stay on the processor."""
    if decoder.packed:
        return HOST
    device = device_of(decoder) if machine is None else machine.place
    return HOST if device.type == "meta" else device


def kernels_for(device: torch.device) -> TorchKernels:
    """The fastest operations on a device."""
    return best_kernels() if is_host(device) else DeviceKernels()


def mask_of(logits_bv: Tensor, sequences: Sequence[RunningSequence]) -> Mask | None:
    """Tokens that sequences with equal settings may draw; all where a bias forbids each of them."""
    first = sequences[0]
    states, temperature = [each.state for each in sequences], first.settings.temperature
    mask = first.vocabulary.mask(states, temperature, logits_bv.device)
    if mask is not None and any(each.settings.forbids for each in sequences):
        none_b = mask.apply(logits_bv).amax(dim=-1) == -math.inf
        mask = Mask(mask.forbidden_sv, mask.states_b.masked_fill(none_b, ANY))
    return mask


def of_block(packed: Mapping[str, list[PackedTensor]], layer: int) -> dict[str, list[PackedTensor]]:
    """Packed matrices of a block by their layers' names in it."""
    start, end = f"blocks.{layer}.", ".weight"
    names = {name: name.removeprefix(start).removesuffix(end) for name in packed}
    return {names[name]: packed[name] for name in packed if name.startswith(start)}


class PackedEmbedding(nn.Module):
    """A token embedding that unpacks the rows it is asked for.

    Args:
        table: as the file packs it.
        unembedding: the same in panels, which are read if they are packed too; None if it is
            another matrix.
        kernels: reads the rows.
    """

    def __init__(
        self, table: PackedTensor, unembedding: Weight | None, kernels: TorchKernels
    ) -> None:
        super().__init__()
        self._kernels = kernels
        outputs, inputs = table.shape
        self._table = unembedding
        if unembedding is None or unembedding.packing is None:
            kept = nn.Parameter(table.data.clone(), requires_grad=False)  # counts as held
            self._kept = kept
            self._table = Weight(kept.data, None, None, (outputs, inputs), packing=table.type)

    def forward(self, tokens: Tensor) -> Tensor:
        assert self._table is not None
        return self._kernels.rows(self._table, tokens.flatten()).view(*tokens.shape, -1)


def unpacked(model: InferenceDecoder) -> Decoder:
    """A float32 decoder of a packed one's numbers."""
    wide, config = torch.float32, model.config
    state = {name: each for name, each in model._decoder.state_dict().items() if not each.is_meta}
    state = {name: each for name, each in state.items() if each.is_floating_point()}
    for layer, block in enumerate(model.blocks):
        inner = block.inner.as_dtype(wide)
        parts = {
            "attention.query_key_value": block.query_key_value.as_dtype(wide),
            "attention.output": block.output.as_dtype(wide),
            "feed_forward.output": block.feed_forward_output.as_dtype(wide),
        }
        if config.activation == "swiglu":
            parts["feed_forward.gate"], inner = inner.chunk(2)
        parts["feed_forward.inner"] = inner
        state |= {f"blocks.{layer}.{name}.weight": part for name, part in parts.items()}
    tokens = torch.arange(config.vocabulary_size, device=model.device)
    state["token_embedding.weight"] = model._decoder.token_embedding(tokens)
    if not config.tied_embeddings:
        state["unembedding.weight"] = model.unembedding.as_dtype(wide)
    with without_weights():
        decoder = Decoder(config).eval()
    decoder.load_state_dict(state, assign=True)
    return decoder


def linear_weights(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every linear layer of the blocks."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            yield name, module.weight


def decoder_for_reading(decoder: Decoder) -> Decoder:
    """A decoder of the same weights in evaluation mode, adapters merged."""
    with without_weights():
        copy = Decoder(decoder.config).eval()
    copy.load_state_dict(merged_state(decoder), assign=True)
    return copy
