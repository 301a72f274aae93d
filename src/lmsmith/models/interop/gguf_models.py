"""Convert settings and weights of GGUF files to ours and back: architectures gpt2 and llama.

Names are those of llama.cpp (gguf-py's constants). Llama's rotary pairs are adjacent there, so the
rows of its queries and keys have another order than ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError, problems_in
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.interop.gguf_file import GgufFile
from lmsmith.models.interop.quantised import PackedTensor
from lmsmith.models.interop.transformers import (
    join_parts,
    parameter_shapes,
    query_key_value_rows,
)
from lmsmith.models.positions import llama3_frequencies, rotary_frequencies
from lmsmith.models.weights_file import refuse_impossible_sizes

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, which Llama 3's scaling gives."""

_LLAMA3 = RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
"""The published settings."""

_GUESSED_ORIGINALS = (8192, 4096, 2048, 16384, 32768, 1024, 512)

_OUTSIDE = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "unembedding": "output",
}
_INSIDE: Mapping[str, Sequence[str]] = {
    "attention_norm": ["attn_norm"],
    "attention.output": ["attn_output"],
    "feed_forward_norm": ["ffn_norm"],
    "feed_forward.gate": ["ffn_gate"],
    "feed_forward.inner": ["ffn_up"],
    "feed_forward.output": ["ffn_down"],
}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    read: Callable[[_Values], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]  # keys without the architecture's name
    query_key_value: Sequence[str]  # names of the parts of our one matrix
    interleaved: bool  # whether rotary pairs are adjacent


class _Values:
    """A file's metadata under its architecture's name, and their problems."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self._prefix = file, f"{architecture}."
        self.problems: list[Problem] = []

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(self._prefix + key, default)

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; a list of one number for each layer must hold one value."""
        value = self.get(key, default)
        values = set(value) if isinstance(value, list) else {value}
        found = values.pop() if len(values) == 1 else None
        if type(found) is int and (found >= least or found == default):
            return found
        self.refuse(key, value, "one whole number above 0", "it is missing, or layers differ")
        return 1

    def number(self, key: str, default: float) -> float:
        """A float32 of the file as the shortest decimal that gives it."""
        value = self.get(key, default)
        if type(value) in (int, float) and math.isfinite(value):
            return shortest(value, 7)
        self.refuse(key, value, "a number", "fetch the file again")
        return default

    def refuse(self, key: str, value: object, expected: str, fix: str) -> None:
        self.problems.append(Problem(self._prefix + key, value, expected, fix))

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    @property
    def tied(self) -> bool:
        """Whether the unembedding is no tensor of its own, or has the embedding's bytes."""
        tensors = self.file.tensors
        if "output.weight" not in tensors or "token_embd.weight" not in tensors:
            return True
        own, shared = tensors["output.weight"], tensors["token_embd.weight"]
        return own.type == shared.type and torch.equal(own.data, shared.data)

    @property
    def vocabulary_size(self) -> int:
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            self.refuse("vocab_size", None, "a tensor token_embd.weight", "fetch it again")
            return 1
        return embedding.shape[0] if embedding.shape else 1


def _read_gpt2(values: _Values) -> ModelConfig:
    return ModelConfig(
        values.whole("block_count"),
        values.whole("embedding_length"),
        values.whole("attention.head_count"),
        values.whole("context_length"),
        values.vocabulary_size,
        ffn_width=values.whole("feed_forward_length", 0),
        norm_epsilon=values.number("attention.layer_norm_epsilon", 1e-5),
        tied_embeddings=values.tied,
    )


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {**_sizes(config), "attention.layer_norm_epsilon": config.norm_epsilon}


def _sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "block_count": config.layers,
        "context_length": config.context,
        "embedding_length": config.width,
        "feed_forward_length": config.resolved_ffn_width,
        "attention.head_count": config.heads,
        "vocab_size": config.vocabulary_size,
    }


def _read_llama(values: _Values) -> ModelConfig:
    width, heads = values.whole("embedding_length"), values.whole("attention.head_count")
    per_head = values.whole("attention.key_length", width // max(heads, 1))
    for key, expected in (
        ("attention.value_length", per_head),
        ("rope.dimension_count", per_head),
        ("expert_count", 0),
        ("attention.sliding_window", 0),
    ):
        if (found := values.get(key, expected)) != expected:
            values.refuse(key, found, str(expected), "lmsmith's decoder has no other kind")
    return ModelConfig(
        values.whole("block_count"),
        width,
        heads,
        values.whole("context_length"),
        values.vocabulary_size,
        ffn_width=values.whole("feed_forward_length"),
        kv_heads=values.whole("attention.head_count_kv", heads),
        head_width=0 if per_head * heads == width else per_head,
        norm="rms",
        norm_epsilon=values.number("attention.layer_norm_rms_epsilon", 1e-6),
        positions="rotary",
        rope_theta=values.number("rope.freq_base", 10_000.0),
        rope_scaling=_read_scaling(values, per_head),
        activation="swiglu",
        qkv_bias=values.has("blk.0.attn_q.bias"),
        attention_output_bias=values.has("blk.0.attn_output.bias"),
        ffn_bias=values.has("blk.0.ffn_up.bias"),
        tied_embeddings=values.tied,
    )


def _read_scaling(values: _Values, width: int) -> RopeScaling:
    method = values.get("rope.scaling.type", "none")
    factor = values.number("rope.scaling.factor", 1.0)
    original = values.whole("rope.scaling.original_context_length", 0, least=0)
    if values.has(ROPE_FACTORS):
        return _read_factors(values, width, original)
    if method == "none":
        return RopeScaling()
    if method == "linear":
        return RopeScaling("linear", factor)
    if method == "yarn":
        share = values.number("rope.scaling.attn_factor", 1.0)
        return RopeScaling(
            "yarn",
            factor,
            original,
            beta_fast=values.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=values.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=0.0 if share == 1.0 else shortest(share * _yarn_magnitude(factor)),
        )
    values.refuse("rope.scaling.type", method, "none, linear or yarn", "there is no other here")
    return RopeScaling()


def shortest(value: float, digits: int = 6) -> float:
    """A float32 rounded to its significant digits."""
    return float(f"{value:.{digits}g}")


def _yarn_magnitude(factor: float) -> float:
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _read_factors(values: _Values, width: int, original: int) -> RopeScaling:
    """Llama 3's settings, found from the divisors of the frequencies."""
    theta = values.number("rope.freq_base", 10_000.0)
    packed = values.file.tensors[ROPE_FACTORS]
    if packed.shape != (width // 2,) or width % 2:
        values.refuse("rope_freqs", packed.shape, f"{width // 2} numbers", "fetch the file again")
        return RopeScaling()
    found = packed.read()
    low = values.number("rope.scaling.low_freq_factor", _LLAMA3.low_frequency_factor)
    high = values.number("rope.scaling.high_freq_factor", _LLAMA3.high_frequency_factor)
    factor = shortest(float(found.max()))
    for guess in (original,) if original else _GUESSED_ORIGINALS:
        scaling = RopeScaling("llama3", factor, guess, low, high)
        if torch.allclose(llama3_factors(width, theta, scaling), found, rtol=1e-4):
            return scaling
    values.refuse("rope_freqs", "a tensor", "Llama 3's scaling", "other factors cannot be read")
    return RopeScaling()


def llama3_factors(width: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Llama 3's divisor of each rotary frequency, (width / 2)."""
    frequencies = rotary_frequencies(width, theta)
    return frequencies / llama3_frequencies(frequencies, scaling)


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    values = {
        **_sizes(config),
        "attention.head_count_kv": config.resolved_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.width_per_head,
        "attention.key_length": config.width_per_head,
        "attention.value_length": config.width_per_head,
    }
    if scaling.method in ("linear", "yarn"):
        values |= {"rope.scaling.type": scaling.method, "rope.scaling.factor": scaling.factor}
    if scaling.method in ("llama3", "yarn"):
        values["rope.scaling.original_context_length"] = scaling.original_context
    if scaling.method == "yarn":
        values["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        values["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
        if scaling.attention_factor:
            share = scaling.attention_factor / _yarn_magnitude(scaling.factor)
            values["rope.scaling.attn_factor"] = share
    if scaling.method == "llama3":
        values["rope.scaling.low_freq_factor"] = scaling.low_frequency_factor
        values["rope.scaling.high_freq_factor"] = scaling.high_frequency_factor
    return values


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(_read_gpt2, _write_gpt2, ["attn_qkv"], False),
    "llama": Architecture(_read_llama, _write_llama, ["attn_q", "attn_k", "attn_v"], True),
}


def from_gguf(
    file: GgufFile, dtype: torch.dtype = torch.float32
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Convert the model in a GGUF file.

    Returns:
        The shape, and what `Decoder.load_state_dict` takes, in ``dtype``.

    Raises:
        UserError: another architecture, unsupported settings (all are named), or tensors that are
            missing, of another shape, or without a place.
    """
    return _convert(file, lambda ours, tensor: tensor.read(dtype))


def packed_from_gguf(
    file: GgufFile,
) -> tuple[ModelConfig, dict[str, Tensor], dict[str, list[PackedTensor]]]:
    """Convert the model in a GGUF file, and leave the matrices that are multiplied as they are.

    Returns:
        The shape; what `Decoder.load_state_dict` takes, those matrices on the meta device; and
        the parts that each of them is made of, in our order of rows.

    Raises:
        UserError: as `from_gguf`.
    """
    packed: dict[str, list[PackedTensor]] = {}

    def keep(ours: str, tensor: PackedTensor) -> Tensor:
        if len(tensor.shape) != 2 or ours.startswith("position_embedding."):
            return tensor.read()
        packed.setdefault(ours, []).append(tensor)
        return torch.empty(tensor.shape, device="meta")

    return *_convert(file, keep), packed


def _convert(
    file: GgufFile, take: Callable[[str, PackedTensor], Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and all parameters, each of the parts that ``take(our name, part)`` gives."""
    architecture, config = _read_config(file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    refuse_impossible_sizes(config, shapes, "the GGUF file")
    used = {ROPE_FACTORS, "output.weight"}

    def read(ours: str, theirs: str, number: int, shape: tuple[int, ...]) -> Tensor:
        if theirs not in file.tensors:
            raise UserError(f"the GGUF file lacks the tensor {theirs}", "fetch it again")
        used.add(theirs)
        if shapes[theirs] != shape:
            fix = "the file is not what its metadata says: fetch it again"
            raise UserError(f"{theirs} has the shape {shapes[theirs]}, not {shape}", fix)
        part = file.tensors[theirs]
        if heads := _interleaved_heads(architecture, config, ours, number):
            rows = halves_apart(part.data.view(shape[0], -1), heads)
            part = replace(part, data=rows.flatten())
        return take(ours, part)

    state = join_parts(config, lambda ours: _their_names(architecture, ours), read)
    if left := sorted(set(file.tensors) - used):
        raise UserError(
            f"the GGUF file has tensors without a place in our decoder: {', '.join(left[:3])}",
            "it is a variant of its architecture that lmsmith does not have",
        )
    return config, state


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """The shape alone; raises as `from_gguf` does."""
    return _read_config(file)[1]


def _read_config(file: GgufFile) -> tuple[Architecture, ModelConfig]:
    name = file.metadata.get("general.architecture")
    architecture = ARCHITECTURES.get(str(name))
    if architecture is None:
        raise UserError(
            f"general.architecture = {name}: not an architecture that lmsmith reads",
            f"it reads {', '.join(ARCHITECTURES)}",
        )
    values = _Values(file, str(name))
    with refusing_damage("the GGUF file"):
        config = architecture.read(values)
    if problems := values.problems or problems_in(config):
        raise SettingsError(problems, "the GGUF file")
    return architecture, config


def to_gguf(
    config: ModelConfig, state: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Convert a model to llama.cpp's format.

    Returns:
        The architecture, metadata by key, and the tensors one by one.

    Raises:
        UserError: llama.cpp does not support the model; every reason is named.
    """
    name = "llama" if config.positions == "rotary" else "gpt2"
    if problems := list(_unsupported(config, name)):
        raise SettingsError(problems, f"a GGUF file (llama.cpp's {name})")
    architecture = ARCHITECTURES[name]
    metadata = {f"{name}.{key}": value for key, value in architecture.write(config).items()}
    return name, metadata, _their_tensors(architecture, config, state)


def _their_tensors(
    architecture: Architecture, config: ModelConfig, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    scaling = config.rope_scaling
    if scaling.method == "llama3":
        yield ROPE_FACTORS, llama3_factors(config.width_per_head, config.rope_theta, scaling)
    for ours in parameter_shapes(config):
        names, weight = _their_names(architecture, ours), state[ours]
        parts = (weight,) if len(names) == 1 else torch.split(weight, query_key_value_rows(config))
        for number, (theirs, part) in enumerate(zip(names, parts, strict=True)):
            heads = _interleaved_heads(architecture, config, ours, number)
            yield theirs, pairs_together(part, heads) if heads else part


def _unsupported(config: ModelConfig, name: str) -> Iterator[Problem]:
    wanted: dict[str, object] = {"norm_position": "pre"}
    if name == "llama":
        wanted |= {"norm": "rms", "activation": "swiglu"}
    else:
        wanted |= {"norm": "layer", "activation": "gelu_tanh", "positions": "learned"}
        wanted |= dict.fromkeys(("qkv_bias", "attention_output_bias", "ffn_bias"), True)
    fix = "export it to hf, or train another shape"
    for key, value in wanted.items():
        if getattr(config, key) != value:
            yield Problem(key, getattr(config, key), str(value), fix)
    if any(config.window_of(layer) for layer in range(config.layers)):
        yield Problem("attention_pattern", list(config.attention_pattern), '["dense"]', fix)
    if name == "gpt2" and config.resolved_kv_heads != config.heads:
        yield Problem("kv_heads", config.resolved_kv_heads, f"heads ({config.heads})", fix)
    if name == "gpt2" and config.width_per_head * config.heads != config.width:
        yield Problem("head_width", config.head_width, "width / heads", fix)
    scaling = config.rope_scaling
    if scaling.method == "dynamic" or (scaling.method == "yarn" and not scaling.truncate):
        expected = "none, linear, llama3 or yarn, rounded"
        yield Problem("rope_scaling.method", scaling.method, expected, fix)


def _their_names(architecture: Architecture, ours: str) -> list[str]:
    part, kind = ours.rsplit(".", 1)
    if not part.startswith("blocks."):
        return [f"{_OUTSIDE[part]}.{kind}"]
    _, layer, part = part.split(".", 2)
    stacked = part == "attention.query_key_value"
    names = architecture.query_key_value if stacked else _INSIDE[part]
    return [f"blk.{layer}.{name}.{kind}" for name in names]


def _interleaved_heads(
    architecture: Architecture, config: ModelConfig, ours: str, number: int
) -> int:
    """Heads in part ``number`` of a matrix with interleaved rows; 0 for other parts."""
    if not architecture.interleaved or ".query_key_value." not in ours:
        return 0
    return (config.heads, config.resolved_kv_heads, 0)[number]


def pairs_together(rows: Tensor, heads: int) -> Tensor:
    """Interleave rows i and i + head_width / 2 of each head."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def halves_apart(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `pairs_together`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
