"""The shape of a transformer; its numbers of parameters, operations and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import msgspec

from lmsmith.core.config import (
    SHORTHAND,
    FractionBelowOne,
    PositiveFloat,
    Problem,
)

AttentionKind = Literal["dense", "banded"]

MOST_LAYERS = 1024
"""Far above every published decoder; a damaged file may name any number."""

Layers = Annotated[int, msgspec.Meta(ge=1, le=MOST_LAYERS)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
SizeOrNone = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched over a context longer than the trained one."""

    method: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    """``none``; ``linear`` divides all frequencies by the factor (Chen et al. 2023); ``dynamic``
    raises the base once a sequence is longer than ``original_context`` (NTK aware scaling);
    ``llama3`` divides the low frequencies only (Llama 3.1); ``yarn`` interpolates between both by
    wavelength and warms the scores (Peng et al. 2023)."""
    factor: float = 1.0
    """How much longer the context is."""
    original_context: int = 0
    """Tokens the model was trained on before it was stretched; not read by ``linear``."""
    low_frequency_factor: float = 1.0
    """``llama3``: wavelengths longer than original_context / this are divided."""
    high_frequency_factor: float = 4.0
    """``llama3``: wavelengths shorter than original_context / this are kept."""
    beta_fast: float = 32.0
    """``yarn``: rotations within the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """``yarn``: rotations within the original context below which a frequency is divided."""
    attention_factor: float = 0.0
    """``yarn``: multiplies cosine and sine; 0 means 0.1 ln(factor) + 1."""
    truncate: bool = True
    """``yarn``: round the borders of its ramp to whole dimensions."""


@dataclass(frozen=True)
class ModelConfig:
    """A stack of blocks. The defaults make it GPT-2 (Radford et al. 2019, section 2.3); GPT-1,
    GPT-3, Llama and BERT are other choices of the same parts (`lmsmith.models.presets`).
    """

    layers: Layers = 6
    """Number of blocks."""
    width: Size = 256
    """Size of the residual stream."""
    heads: Size = 4
    """Attention heads."""
    context: Size = 256
    """Longest sequence, in tokens."""
    vocabulary_size: SizeOrNone = 0
    """Rows of the token embedding; 0 in a recipe means the tokenizer's size."""
    ffn_width: SizeOrNone = 0
    """Inner width of the feed-forward layer; 0 means 4 × width."""
    dropout: FractionBelowOne = 0.0
    """Probability at the embeddings, the attention weights and each residual branch; 0 is off."""
    kv_heads: SizeOrNone = 0
    """Heads of keys and values, each shared by heads / kv_heads query heads (Ainslie et al. 2023);
    0 means as many as heads."""
    head_width: SizeOrNone = 0
    """Width of one head's query, key and value; 0 means width / heads."""
    norm_position: Literal["pre", "post"] = "pre"
    """``pre``, x + f(norm(x)), with a final norm; ``post``, norm(x + f(x)), without one (Vaswani et
    al. 2017; GPT-1)."""
    norm: Literal["layer", "rms"] = "layer"
    """``layer`` (Ba et al. 2016) or ``rms`` (Zhang and Sennrich 2019)."""
    norm_epsilon: PositiveFloat = 1e-5
    """Added to the variance."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """``learned`` (a table of ``context`` rows), ``sinusoidal`` (Vaswani et al. 2017, section 3.5,
    with token embeddings × √width) or ``rotary`` (Su et al. 2021)."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    """How the rotary positions are stretched."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu", "swiglu"] = "gelu_tanh"
    """Activation of the feed-forward layer: ``gelu_tanh`` (GPT-2's form), ``gelu`` (exact),
    ``relu``, ``silu``, or ``swiglu``, silu(gate) × inner with a third matrix (Shazeer 2020)."""
    qkv_bias: bool = True
    """The layer that makes queries, keys and values adds a bias."""
    attention_output_bias: bool = True
    """The attention's output layer adds a bias."""
    ffn_bias: bool = True
    """The feed-forward layers add a bias."""
    tied_embeddings: bool = True
    """The unembedding is the transposed token embedding."""
    attention_pattern: tuple[AttentionKind, ...] = ("dense",)
    """Kinds of attention, repeated over the layers: ``dense`` sees everything before, ``banded``
    the last ``window`` tokens (Child et al. 2019; GPT-3)."""
    window: SizeOrNone = 0
    """Tokens a banded layer's position sees, itself included."""
    causal: bool = True
    """Each position sees itself and those before it, as GPT; false: it sees all, as BERT's encoder
    (Devlin et al. 2018)."""
    segments: SizeOrNone = 0
    """Rows of the segment embedding that BERT adds, one for each of two sentences; 0: none."""
    embedding_norm: bool = False
    """The sum of the embeddings is normalised before the first block (BERT)."""
    pooler: bool = False
    """An encoder's dense layer with tanh over the first token's state (BERT)."""
    preset: str = field(default="", compare=False, repr=False, metadata=SHORTHAND)
    """In a recipe, a published shape by name (``lmsmith models presets``): the settings that are
    not written beside it are its."""

    def check(self) -> list[Problem]:
        """Contradictions between settings."""
        return [*self._check_parts(), *self._check_scaling(), *self._check_pattern()]

    def _check_parts(self) -> Iterator[Problem]:
        heads = self.heads
        if heads >= 1 and self.head_width == 0 and self.width % heads:
            fix = "choose width and heads so that width / heads is whole, or set head_width"
            yield Problem("heads", heads, f"a divisor of width ({self.width})", fix)
        if heads >= 1 and self.kv_heads > 0 and heads % self.kv_heads:
            fix = "choose it so that each is shared by as many heads"
            yield Problem("kv_heads", self.kv_heads, f"a divisor of heads ({heads})", fix)
        if heads >= 1 and self.positions == "rotary" and self.width_per_head % 2:
            expected, fix = "even with rotary positions", "they turn pairs of dimensions"
            yield Problem("head_width", self.width_per_head, expected, fix)
        if self.positions == "sinusoidal" and self.width % 2:
            expected, fix = "even with sinusoidal positions", "half are sines, half cosines"
            yield Problem("width", self.width, expected, fix)

    def _check_scaling(self) -> Iterator[Problem]:
        scaling, original = self.rope_scaling, self.rope_scaling.original_context
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        slow, fast = scaling.beta_slow, scaling.beta_fast
        if scaling.method == "none":
            return
        if self.positions != "rotary":
            expected = 'none unless positions = "rotary"'
            yield Problem("rope_scaling.method", scaling.method, expected, "leave it out")
        if not scaling.factor >= 1.0:
            yield Problem("rope_scaling.factor", scaling.factor, "1 or more", "raise it")
        if scaling.method != "linear" and not 1 <= original <= self.context:
            expected = f"between 1 and the context ({self.context})"
            fix = "set it to the context before scaling"
            yield Problem("rope_scaling.original_context", original, expected, fix)
        if scaling.method == "llama3" and not 0 < low < high:
            expected = f"between 0 and high_frequency_factor ({high:g})"
            yield Problem("rope_scaling.low_frequency_factor", low, expected, "lower it")
        if scaling.method == "dynamic" and self.heads >= 1 and self.width_per_head == 2:
            yield Problem("rope_scaling.method", "dynamic", "another one at a head_width of 2")
        if scaling.method == "yarn" and not self.rope_theta > 1:
            yield Problem("rope_theta", self.rope_theta, "above 1 with yarn", "raise it")
        if scaling.method == "yarn" and not 0 < slow <= fast:
            expected = f"between 0 and beta_fast ({fast:g})"
            yield Problem("rope_scaling.beta_slow", slow, expected, "lower it")

    def _check_pattern(self) -> Iterator[Problem]:
        banded = "banded" in self.attention_pattern
        if not self.attention_pattern:
            yield Problem("attention_pattern", [], "one kind or more", 'write ["dense"]')
        elif banded and self.window == 0:
            yield Problem("window", 0, "a positive number with banded layers", "set window")
        elif banded and not self.causal:
            fix = 'write attention_pattern = ["dense"]'
            yield Problem("attention_pattern", ["banded"], "dense layers in an encoder", fix)
        elif self.window > 0 and not banded:
            fix = 'write attention_pattern = ["dense", "banded"], or leave window out'
            yield Problem("window", self.window, "0 without banded layers", fix)

    @property
    def is_encoder(self) -> bool:
        """Whether it has anything that a decoder has not."""
        return not self.causal or self.segments > 0 or self.embedding_norm or self.pooler

    @property
    def width_per_head(self) -> int:
        """Width of one head's query, key and value."""
        return self.head_width or self.width // self.heads

    @property
    def resolved_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def resolved_ffn_width(self) -> int:
        return self.ffn_width or 4 * self.width

    @property
    def has_final_norm(self) -> bool:
        """Post-norm blocks end with a norm of their own."""
        return self.norm_position == "pre"

    def attention_kind(self, layer: int) -> AttentionKind:
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def window_of(self, layer: int) -> int:
        """Tokens a position of this layer sees; 0 for all before it."""
        return self.window if self.attention_kind(layer) == "banded" else 0

    @property
    def _query_width(self) -> int:
        return self.heads * self.width_per_head

    @property
    def _key_value_width(self) -> int:
        return 2 * self.resolved_kv_heads * self.width_per_head

    @property
    def block_products(self) -> int:
        """Weights of one block's matrices."""
        attention = self.width * (2 * self._query_width + self._key_value_width)
        matrices = 3 if self.activation == "swiglu" else 2
        return attention + matrices * self.width * self.resolved_ffn_width

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        width, inner = self.width, self.resolved_ffn_width
        block = self.block_products + 2 * self._norm_parameters
        block += self.qkv_bias * (self._query_width + self._key_value_width)
        block += self.attention_output_bias * width
        return block + self.ffn_bias * (inner * (1 + (self.activation == "swiglu")) + width)

    @property
    def _norm_parameters(self) -> int:
        return 2 * self.width if self.norm == "layer" else self.width

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied embedding counted once."""
        width, norm = self.width, self._norm_parameters
        embeddings = self.vocabulary_size * width * (1 if self.tied_embeddings else 2)
        if self.positions == "learned":
            embeddings += self.context * width
        embeddings += self.segments * width + self.embedding_norm * norm
        embeddings += self.pooler * (width * width + width)
        return embeddings + self.layers * self.block_parameters + self.has_final_norm * norm

    def training_flops_per_token(self, context: int | None = None) -> float:
        """Operations in matrix products for one trained token, forward and backward.

        6 × the weights of products (unembedding included, look-ups not) + 12 × heads × head_width ×
        the tokens that a position sees on average, summed over the layers: context / 2 in a dense
        one (Chowdhery et al. 2022, appendix B), window − window² / (2 × context) in a banded one,
        context in an encoder's.
        """
        length = context or self.context
        products = self.layers * self.block_products + self.vocabulary_size * self.width
        seen = 0.0
        for layer in range(self.layers):
            window = min(self.window_of(layer) or length, length)
            seen += window - window * window / (2 * length) if self.causal else length
        return 6.0 * products + 12.0 * self._query_width * seen

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes of KV cache for one token that every layer keeps; an encoder has none."""
        return self.causal * self.layers * self._key_value_width * bytes_per_number

    def cache_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes of KV cache for a sequence; banded layers keep their window alone."""
        kept = sum(min(tokens, self.window_of(layer) or tokens) for layer in range(self.layers))
        return self.causal * kept * self._key_value_width * bytes_per_number


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Shape of an encoder–decoder, and the tokens that open and close what it writes."""

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            norm_position="post", positions="sinusoidal", activation="relu"
        )
    )
    """Blocks of both sides; ``layers`` is the encoder's. Both share one embedding, which is the
    unembedding too (section 3.4)."""
    decoder_layers: SizeOrNone = 0
    """Blocks of the decoder; 0 means as many as the encoder has."""
    start_token: SizeOrNone = 0
    """The decoder's first input: its inputs are the target shifted right by one (section 3.1)."""
    end_token: SizeOrNone = 0
    """Ends every source and every target."""
    output_bias: bool = False
    """The logits have a bias, as Marian's; it is read from such a model and not trained here."""

    def check(self) -> list[Problem]:
        """Parts that only a decoder or an encoder alone has."""
        model, key = self.model, "model."
        found = []
        if model.positions == "rotary":
            fix = 'write positions = "sinusoidal", or "learned"'
            found += [Problem(key + "positions", "rotary", "added to the embeddings", fix)]
        if set(model.attention_pattern) != {"dense"}:
            fix = 'write attention_pattern = ["dense"]'
            pattern = list(model.attention_pattern)
            found += [Problem(key + "attention_pattern", pattern, "dense layers alone", fix)]
        if not model.tied_embeddings:
            fix = "leave it out: source, target and unembedding share one matrix"
            found += [Problem(key + "tied_embeddings", False, "true", fix)]
        if model.is_encoder:
            fix = "leave causal, segments, embedding_norm and pooler out"
            found += [Problem("model", "an encoder's", "no setting of BERT's", fix)]
        return found

    @property
    def layers(self) -> int:
        """Blocks of both sides."""
        return self.model.layers + self.resolved_decoder_layers

    @property
    def width(self) -> int:
        return self.model.width

    @property
    def resolved_decoder_layers(self) -> int:
        return self.decoder_layers or self.model.layers

    @property
    def parameters(self) -> int:
        """Number of parameters; the shared embedding counts once."""
        model = self.model
        norm = 2 * model.width if model.norm == "layer" else model.width
        one, none = (replace(model, layers=n).parameters for n in (1, 0))
        inner = model.heads * model.width_per_head
        shared = 2 * model.resolved_kv_heads * model.width_per_head
        cross = model.width * (2 * inner + shared) + norm
        cross += model.qkv_bias * (inner + shared) + model.attention_output_bias * model.width
        decoder = self.resolved_decoder_layers * (one - none + cross)
        final = model.has_final_norm * norm + self.output_bias * model.vocabulary_size
        return model.parameters + decoder + final

    def training_flops(self, source_tokens: float, target_tokens: float) -> float:
        """Operations of matrix products for one pair's training, forward and backward.

        6 × the weights that each token passes, and 12 × width × pairs of positions a layer.
        """
        model, width = self.model, self.model.width
        products = replace(model, layers=1).block_products
        cross = 4 * width * width
        source, target, layers = source_tokens, target_tokens, self.resolved_decoder_layers
        weights = model.layers * products * source + layers * products * target
        weights += layers * cross * (source + target) / 2 + model.vocabulary_size * width * target
        pairs = model.layers * source**2 + layers * (target**2 / 2 + source * target)
        return 6.0 * weights + 12.0 * width * pairs
